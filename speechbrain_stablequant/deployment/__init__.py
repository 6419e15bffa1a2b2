"""Published models at work: loaded, timed, written for runtimes alone."""

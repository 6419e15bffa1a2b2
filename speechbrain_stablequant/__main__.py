"""``python -m speechbrain_stablequant``: the ``stablequant`` command."""

import sys

from speechbrain_stablequant.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""Settings of all tests: property tests draw the same examples each time."""

from hypothesis import HealthCheck, settings
from speechbrain.utils.importutils import LazyModule

# Hypothesis asks every loaded module for its file; SpeechBrain's lazy modules
# would answer by importing k2 and the like, which need not be installed.
LazyModule.__file__ = None

settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    max_examples=40,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("fixed")

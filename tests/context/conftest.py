"""Property tests have no deadline: on a busy machine one would fail for what the machine does."""

from hypothesis import settings

settings.register_profile("context", deadline=None)
settings.load_profile("context")

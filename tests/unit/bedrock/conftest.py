"""Properties are judged by their results: on shared cores an example's wall time says nothing."""

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

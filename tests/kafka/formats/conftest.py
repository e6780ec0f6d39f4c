from hypothesis import HealthCheck, settings

# Machines are busy: how long an example takes says nothing.
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60
)
settings.load_profile("patient")

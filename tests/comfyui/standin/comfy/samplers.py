class KSampler:
    SAMPLERS = ("euler", "dpmpp_2m")
    SCHEDULERS = ("normal", "karras")

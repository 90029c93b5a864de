"""The recipe that trained glyph, the small Stable Diffusion stack in ``lidar_sampling.glyph``.

    python -m training.glyph all            # every weight, from the font to the detector; needs a GPU
    python -m training.glyph all --smoke    # the same in a minute on a CPU, with useless weights

README.md says what each stage makes. Notation in every module: B pictures per batch, 4 slots for objects in each, 80
classes, 11 colours (0 natural, then GenEval's ten).
"""

"""The recipe that trained glyph, the small Stable Diffusion stack in ``lidar_sampling.glyph``.

    python -m training.glyph all            # every weight, from the font to the detector; needs a GPU
    python -m training.glyph all --smoke    # the same road in a minute on a CPU, to nowhere

README.md says what each stage makes. Notation, in every module: B pictures a batch,
4 slots for objects in each, 80 classes, 11 colours (0 natural, then GenEval's ten).
"""

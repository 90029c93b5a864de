def text_encoder_device():
    return "cpu"

def get_previewer(device, latent_format):
    return None

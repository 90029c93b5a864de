from pathlib import Path

output = "output"


def get_output_directory():
    return str(output)


def get_save_image_path(name, folder):
    return folder, name, 1 + len(list(Path(folder).glob(f"{name}_*"))), "", name

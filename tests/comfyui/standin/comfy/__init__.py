"""The few calls of ComfyUI that the pack needs, so that its tests run without ComfyUI. Nothing here is its code."""

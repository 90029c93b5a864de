"""Rewards that take as long as a test wants."""

import threading
import time

opened = threading.Event()


def waits(*, images, prompts):
    opened.wait(20)
    return images.flatten(1).mean(1)


def sleeps(*, images, prompts):
    time.sleep(0.4)
    return images.flatten(1).mean(1)


def fails(*, images, prompts):
    raise RuntimeError("out of paint")

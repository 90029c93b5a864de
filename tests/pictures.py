"""Pictures, prompts, tokenizers and tiny weights for the tests of reward models."""

import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
WORDS = ["a", "photo", "of", "cat", "two", "dogs", "red", "cup", "clock"]
PROMPTS = ["a photo of a cat", "two dogs", "a red cup"]


def pictures(n=3, height=128, width=None, seed=0):
    """Return smooth pictures with 8-bit values."""
    noise = torch.rand(n, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    smooth = F.interpolate(noise, size=(height, width or height), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round() / 255


def tiny(seed):
    """Return random weights of given shapes, from one generator."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator) * 0.2


def words_tokenizer(special, *, words=WORDS, **options):
    vocabulary = [*special, *words]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=special[0]))
    backend.normalizer = options.pop("normalizer", None)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    backend.post_processor = options.pop("post_processor", None)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=special[0], **options)


def bert_tokenizer(path):
    """Save a tokenizer of these words that marks texts as BERT's does; return its folder."""
    words_tokenizer(
        ["[UNK]", "[CLS]", "[SEP]", "[PAD]"],
        normalizer=normalizers.BertNormalizer(),
        post_processor=processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1)),
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
    ).save_pretrained(path)
    return path


def by_pillow(images, height, width, resample=Image.Resampling.BICUBIC):
    rows = []
    for image in (images * 255).round().to(torch.uint8):
        resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), resample)
        rows.append(torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(height, width, 3))
    return torch.stack(rows).permute(0, 3, 1, 2).float() / 255

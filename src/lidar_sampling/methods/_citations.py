"""What to cite: the papers that the methods come from, as BibTeX.

Each method's module names its sources by their address; here they have titles and authors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from . import _names
from .backtracking import Backtracking
from .beam_search import BeamSearch
from .best_of import BestOf
from .das import DAS
from .date import DATE
from .evolution import EvoSearch
from .fk_steering import FKSteering
from .fmrg import FMRG
from .group import Group
from .halving import Halving
from .lidar import Guided
from .noise_search import NoiseSearch
from .refine import Refine
from .reno import ReNO
from .repulsion import SafeDenoiser, Spell
from .rollover import RBF
from .steered import Steered
from .svdd import SVDD
from .threshold import Threshold
from .tree import DTS
from .universal_guidance import UniversalGuidance
from .vanilla import Vanilla


class Paper(NamedTuple):
    """A paper, as BibTeX spells names.

    Attributes:
        key: of the entry.
        authors: ``Last, First and Last, First``.
        title: in the paper's own capitals.
        year: of the version named.
        arxiv: its number there, or empty.
        doi: empty where the number in arXiv is enough.
        conference: where it was published, if it was.
        journal: likewise.
    """

    key: str
    authors: str
    title: str
    year: int
    arxiv: str = ""
    doi: str = ""
    conference: str = ""
    journal: str = ""

    def bibtex(self) -> str:
        """Return the entry."""
        fields = {
            "author": self.authors,
            "title": f"{{{self.title}}}",  # twice in braces, so that styles leave its capitals alone
            "booktitle": self.conference,
            "journal": self.journal,
            "year": str(self.year),
            "eprint": self.arxiv,
            "archivePrefix": "arXiv" if self.arxiv else "",
            "doi": self.doi,
        }
        kind = "inproceedings" if self.conference else "article" if self.journal else "misc"
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value]
        return "\n".join([f"@{kind}{{{self.key},", *lines, "}"])


LIDAR = Paper(
    "kim2026lidar",
    "Kim, Yeongmin and Shin, Donghyeok and Na, Byeonghu and Park, Minsang and Lee Kim, Richard and Moon, Il-Chul",
    "Lookahead Sample Reward Guidance for Test-Time Scaling of Diffusion Models",
    2026,
    "2602.03211",
    conference="International Conference on Machine Learning (ICML)",
)

PAPERS: dict[type, tuple[Paper, ...]] = {
    Vanilla: (),
    Guided: (LIDAR,),
    BestOf: (
        Paper(
            "beirami2024theoretical",
            "Beirami, Ahmad and Agarwal, Alekh and Berant, Jonathan and D'Amour, Alexander and Eisenstein, Jacob and "
            "Nagpal, Chirag and Suresh, Ananda Theertha",
            "Theoretical guarantees on the best-of-n alignment policy",
            2024,
            "2401.01879",
        ),
    ),
    Refine: (
        Paper(
            "meng2022sdedit",
            "Meng, Chenlin and He, Yutong and Song, Yang and Song, Jiaming and Wu, Jiajun and Zhu, Jun-Yan and "
            "Ermon, Stefano",
            "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
            2022,
            "2108.01073",
            conference="International Conference on Learning Representations (ICLR)",
        ),
    ),
    Halving: (
        Paper(
            "guimaraes2026progressive",
            "Guimaraes, Rogerio and Perona, Pietro",
            "Inference-Time Scaling of Diffusion Models via Progressive Seed Pruning",
            2026,
            "2607.21591",
        ),
        Paper(
            "jamieson2016nonstochastic",
            "Jamieson, Kevin and Talwalkar, Ameet",
            "Non-stochastic Best Arm Identification and Hyperparameter Optimization",
            2016,
            "1502.07943",
            conference="International Conference on Artificial Intelligence and Statistics (AISTATS)",
        ),
    ),
    Steered: (
        Paper(
            "delmoral2012adaptive",
            "Del Moral, Pierre and Doucet, Arnaud and Jasra, Ajay",
            "An adaptive sequential Monte Carlo method for approximate Bayesian computation",
            2012,
            doi="10.1007/s11222-011-9271-y",
            journal="Statistics and Computing",
        ),
        Paper(
            "verge2013island",
            r"Verg{\'e}, Christelle and Dubarry, Cyrille and Del Moral, Pierre and Moulines, Eric",
            "On parallel implementation of Sequential Monte Carlo methods: the island particle model",
            2013,
            "1306.3911",
        ),
    ),
    Group: (
        Paper(
            "parmar2025group",
            "Parmar, Gaurav and Patashnik, Or and Ostashev, Daniil and Wang, Kuan-Chieh and Aberman, Kfir and "
            "Narasimhan, Srinivasa and Zhu, Jun-Yan",
            "Scaling Group Inference for Diverse and High-Quality Generation",
            2025,
            "2508.15773",
        ),
    ),
    Threshold: (
        Paper(
            "sundaresha2025verifier",
            "Sundaresha, Vignesh and Haridas, Akash and Appia, Vikram and Varshney, Lav R.",
            "Verifier Threshold: An Efficient Test-Time Scaling Approach for Image Generation",
            2025,
            "2512.08985",
        ),
    ),
    FKSteering: (
        Paper(
            "singhal2025general",
            "Singhal, Raghav and Horvitz, Zachary and Teehan, Ryan and Ren, Mengye and Yu, Zhou and "
            "McKeown, Kathleen and Ranganath, Rajesh",
            "A General Framework for Inference-time Scaling and Steering of Diffusion Models",
            2025,
            "2501.06848",
        ),
    ),
    DAS: (
        Paper(
            "kim2025testtime",
            "Kim, Sunwoo and Kim, Minkyu and Park, Dongmin",
            "Test-time Alignment of Diffusion Models without Reward Over-optimization",
            2025,
            "2501.05803",
            conference="International Conference on Learning Representations (ICLR)",
        ),
    ),
    SVDD: (
        Paper(
            "li2024derivativefree",
            "Li, Xiner and Zhao, Yulai and Wang, Chenyu and Scalia, Gabriele and Eraslan, Gokcen and Nair, Surag and "
            "Biancalani, Tommaso and Ji, Shuiwang and Regev, Aviv and Levine, Sergey and Uehara, Masatoshi",
            "Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft Value-Based Decoding",
            2024,
            "2408.08252",
        ),
    ),
    BeamSearch: (
        Paper(
            "oshima2025inference",
            "Oshima, Yuta and Suzuki, Masahiro and Matsuo, Yutaka and Furuta, Hiroki",
            "Inference-Time Text-to-Video Alignment with Diffusion Latent Beam Search",
            2025,
            "2501.19252",
            conference="Advances in Neural Information Processing Systems (NeurIPS)",
        ),
    ),
    EvoSearch: (
        Paper(
            "he2025scaling",
            "He, Haoran and Liang, Jiajun and Wang, Xintao and Wan, Pengfei and Zhang, Di and Gai, Kun and Pan, Ling",
            "Scaling Image and Video Generation via Test-Time Evolutionary Search",
            2025,
            "2505.17618",
        ),
    ),
    RBF: (
        Paper(
            "kim2025rollover",
            "Kim, Jaihoon and Yoon, Taehoon and Hwang, Jisung and Sung, Minhyuk",
            "Inference-Time Scaling for Flow Models via Stochastic Generation and Rollover Budget Forcing",
            2025,
            "2503.19385",
        ),
    ),
    NoiseSearch: (
        Paper(
            "ma2025inference",
            "Ma, Nanye and Tong, Shangyuan and Jia, Haolin and Hu, Hexiang and Su, Yu-Chuan and Zhang, Mingda and "
            "Yang, Xuan and Li, Yandong and Jaakkola, Tommi and Jia, Xuhui and Xie, Saining",
            "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps",
            2025,
            "2501.09732",
        ),
    ),
    DTS: (
        Paper(
            "jain2025diffusion",
            "Jain, Vineet and Sareen, Kusha and Pedramfar, Mohammad and Ravanbakhsh, Siamak",
            "Diffusion Tree Sampling: Scalable inference-time alignment of diffusion models",
            2025,
            "2506.20701",
        ),
    ),
    Backtracking: (
        Paper(
            "zhang2025inference",
            "Zhang, Xiangcheng and Lin, Haowei and Ye, Haotian and Zou, James and Ma, Jianzhu and Liang, Yitao and "
            "Du, Yilun",
            "Inference-time Scaling of Diffusion Models through Classical Search",
            2025,
            "2505.23614",
        ),
    ),
    UniversalGuidance: (
        Paper(
            "bansal2023universal",
            "Bansal, Arpit and Chu, Hong-Min and Schwarzschild, Avi and Sengupta, Soumyadip and Goldblum, Micah and "
            "Geiping, Jonas and Goldstein, Tom",
            "Universal Guidance for Diffusion Models",
            2023,
            "2302.07121",
        ),
    ),
    FMRG: (
        Paper(
            "huang2026guide",
            "Huang, Jerry Y. and Lin, Justin and Shah, Sheel and Nair, Kartik and Boffi, Nicholas M.",
            "How to Guide Your Flow: Few-Step Alignment via Flow Map Reward Guidance",
            2026,
            "2604.27147",
            conference="International Conference on Machine Learning (ICML)",
        ),
    ),
    ReNO: (
        Paper(
            "eyring2024reno",
            "Eyring, Luca and Karthik, Shyamgopal and Roth, Karsten and Dosovitskiy, Alexey and Akata, Zeynep",
            "ReNO: Enhancing One-step Text-to-Image Models through Reward-based Noise Optimization",
            2024,
            "2406.04312",
            conference="Advances in Neural Information Processing Systems (NeurIPS)",
        ),
    ),
    DATE: (
        Paper(
            "na2025diffusion",
            "Na, Byeonghu and Park, Minsang and Sim, Gyuwon and Shin, Donghyeok and Bae, HeeSun and Kang, Mina and "
            "Kwon, Se Jung and Kang, Wanmo and Moon, Il-Chul",
            "Diffusion Adaptive Text Embedding for Text-to-Image Diffusion Models",
            2025,
            "2510.23974",
            conference="Advances in Neural Information Processing Systems (NeurIPS)",
        ),
    ),
    SafeDenoiser: (
        Paper(
            "kim2025safe",
            "Kim, Mingyu and Kim, Dongjun and Yusuf, Amman and Ermon, Stefano and Park, Mijung",
            "Training-Free Safe Denoisers for Safe Use of Diffusion Models",
            2025,
            "2502.08011",
            conference="Advances in Neural Information Processing Systems (NeurIPS)",
        ),
    ),
    Spell: (
        Paper(
            "kirchhof2025shielded",
            r"Kirchhof, Michael and Thornton, James and B{\'e}thune, Louis and Ablin, Pierre and Ndiaye, Eugene and "
            "Cuturi, Marco",
            "Shielded Diffusion: Generating Novel and Diverse Images using Sparse Repellency",
            2025,
            "2410.06025",
            conference="International Conference on Machine Learning (ICML)",
        ),
    ),
}
"""What each method comes from."""


def papers(*methods: str) -> list[Paper]:
    """Return LiDAR's paper and those of the methods, each once.

    Args:
        methods: names that :func:`load` knows, or as ``lidar methods`` lists them, such as ``best-of-N``.

    Raises:
        ValueError: there is no such method; the message names the nearest.

    >>> [paper.arxiv for paper in papers("fk+best-of-8", "svdd-M", "vanilla")]
    ['2602.03211', '2401.01879', '2501.06848', '2408.08252']
    """
    found = [LIDAR]
    for name in methods:
        listed = "".join("2" if letter.isupper() else letter for letter in name)
        method: Any = _names.load(listed if name in _names.NAMES else name)
        while method is not None:
            found += PAPERS[type(method)]
            method = getattr(method, "method", None)  # what best-of-N selects from
    return list(dict.fromkeys(found))


def citation(*methods: str) -> str:
    """Return BibTeX of LiDAR's paper and of those that the methods come from.

    Args:
        methods: as in :func:`papers`.

    Raises:
        ValueError: as there.

    Example:
        >>> print(citation("fk"))
        @inproceedings{kim2026lidar,
          author = {Kim, Yeongmin and Shin, Donghyeok and ... and Moon, Il-Chul},
          title = {{Lookahead Sample Reward Guidance for Test-Time Scaling of Diffusion Models}},
          booktitle = {International Conference on Machine Learning (ICML)},
          year = {2026},
          eprint = {2602.03211},
          archivePrefix = {arXiv},
        }
        <BLANKLINE>
        @misc{singhal2025general,
          author = {Singhal, Raghav and ... and Ranganath, Rajesh},
          title = {{A General Framework for Inference-time Scaling and Steering of Diffusion Models}},
          year = {2025},
          eprint = {2501.06848},
          archivePrefix = {arXiv},
        }
    """
    return "\n\n".join(paper.bibtex() for paper in papers(*methods))

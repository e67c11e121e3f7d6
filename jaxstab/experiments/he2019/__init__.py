"""Asymmetric Valleys: beyond sharp and flat local minima (NeurIPS 2019, arXiv 1902.00744)."""

PAPER = "He, Huang, Yuan 2019"
EXPERIMENTS = {
    "asymmetry": (
        ".asymmetry",
        "Fig. 2, App. A",
        "how many random directions are asymmetric, by kind; does the third derivative tell?",
    ),
    "shift-gap": (
        ".shift_gap",
        "Fig. 3, App. C",
        "how much of the gap between train and test loss along a direction is a shift",
    ),
    "locality": (
        ".locality",
        "Fig. 4",
        "the same direction at many random neighbours of a solution: is it asymmetric there too?",
    ),
    "averaging-1d": (
        ".averaging_1d",
        "Figs. 5, 6, theorem 2",
        "SGD on one-dimensional valleys: its mean lies on the flat side",
    ),
    "bias": (
        ".bias",
        "theorem 1",
        "under a random shift a bias towards the flat side lowers the expected loss",
    ),
    "swa": (
        ".swa",
        "Fig. 8, Table 1",
        "SWA against SGD continued from it: no bump between, and which side each lies on",
    ),
    "large-batch": (
        ".large_batch",
        "Figs. 10, 11",
        "small batches continued from a large-batch solution, and widths along random rays",
    ),
    "batch-norm": (
        ".batch_norm",
        "Figs. 12-14",
        "asymmetry of batch-norm parameters and others, and SWA on one group of them",
    ),
}

"""Stability of SGD, a lecture, with papers that it tells of: SAM and full-batch training."""

PAPER = "Yuan, lecture on the stability of SGD"
EXPERIMENTS = {
    "stability-rates": (
        ".stability_rates",
        "stability of GD and SGD",
        "how errors of GD, SGD and SAM grow and decay on quadratics, against theory",
    ),
    "sam": (
        ".sam",
        "with Foret et al. 2021",
        "SGD, SAM, ASAM, m-SAM: test error, sharpness, edges, at equal steps and equal gradients",
    ),
    "full-batch": (
        ".full_batch",
        "with Geiping et al. 2022",
        "full-batch training: longer, clipped, with a gradient penalty, against SGD",
    ),
}

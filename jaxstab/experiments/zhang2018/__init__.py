"""Theory of Deep Learning IIb: Optimization properties of SGD (CBMM Memo 072)."""

PAPER = "Zhang et al. 2018"
EXPERIMENTS = {
    "gradient-noise": (
        ".gradient_noise",
        "Fig. 1",
        "components of batch gradients at fixed parameters: how Gaussian, against batch size",
    ),
    "sgd-vs-langevin": (
        ".sgd_vs_langevin",
        "Fig. 2",
        "training and validation curves of SGD beside SGD with Langevin noise (SGDL)",
    ),
    "double-well": (
        ".double_well",
        "Fig. 3",
        "Langevin chains in two wells of equal depth, one wider: occupied 2^d times as much",
    ),
    "degenerate": (
        ".degenerate",
        "Figs. 4-6",
        "Langevin, SGDL and SGD beside each other: all prefer a flat valley of minima to a point",
    ),
    "interpolation": (
        ".interpolation",
        "Figs. 7, 8",
        "accuracy over triangles of three minima, natural against random labels",
    ),
    "flatness-radius": (
        ".flatness_radius",
        "Table 1",
        "how far from a minimum the loss stays the same, natural against random labels",
    ),
}

"""How SGD selects the global minima in over-parameterized learning (NeurIPS 2018)."""

PAPER = "Wu, Ma, E 2018"
EXPERIMENTS = {
    "toy-escape": (
        ".toy_escape",
        "Fig. 2",
        "two minima of equal sharpness in one dimension: GD stays at both, SGD leaves one",
    ),
    "diagram": (
        ".diagram",
        "Fig. 3",
        "stability regions in the plane of a and s: eq. 9, eq. 8, exact and simulated",
    ),
    "escape": (
        ".escape",
        "Figs. 1, 8, Table 3",
        "which runs leave a minimum of gradient descent: predicted from a and s, then run",
    ),
    "gd-sharpness": (
        ".gd_sharpness",
        "Table 2",
        "sharpness of gradient-descent minima beside 2/eta, at six learning rates",
    ),
    "lbfgs": (
        ".lbfgs",
        "Fig. 9 and section 5",
        "minima of L-BFGS, Adam and RMSProp: GD and SGD from there; λ_max(D⁻¹H)",
    ),
    "batch-size": (
        ".batch_size",
        "Fig. 5",
        "sharpness and non-uniformity of minima against batch size, at several learning rates",
    ),
    "selection": (
        ".selection",
        "Fig. 6",
        "which minima SGD selects: sharpness and non-uniformity by batch size, inside eq. 9",
    ),
    "correlation": (
        ".correlation",
        "Fig. 7",
        "sharpness against non-uniformity over networks, learning rates, batch sizes, starts",
    ),
    "cross-entropy": (
        ".cross_entropy",
        "Fig. 4",
        "sharpness along training with cross-entropy: it vanishes, the analysis does not apply",
    ),
}

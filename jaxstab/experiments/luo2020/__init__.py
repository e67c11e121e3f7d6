"""How Many Factors Influence Minima in SGD? (arXiv 2009.11858)."""

PAPER = "Luo, Wang 2020"
EXPERIMENTS = {
    "factors": (
        ".factors",
        "Figs. 2-4, Table 1",
        "learning curves at equal and different B/eta; tr C_g against tr H, and what each predicts",
    ),
    "diffusion": (
        ".diffusion",
        "sections 2, 3",
        "where SGD settles: exact covariance, four factors, three, on a quadratic and on digits",
    ),
}

"""What the papers leave open: experiments of this project."""

PAPER = "jaxstab"
EXPERIMENTS = {
    "criteria": (
        ".criteria",
        "which criterion is right",
        "eight notions of stability, predicted at minima, against SGD and its linearisation",
    ),
    "edge": (
        ".edge",
        "where SGD sits while it trains",
        "a, s, the mean-square threshold and batch sharpness along training: which is at its edge",
    ),
}

"""Moment matrices in growing subspaces of the outputs' span: the numerics of `threshold`.

Every matrix S that linearised SGD can bring to grow lives in the span of the rows of F (see
`operators.outputs`), so a basis V = Fᵀ W of it is held by its coefficients W and its images
F V = 𝒦 W, n k numbers a vector each, whatever p is. In coordinates of V, where H is diagonal,

    C[S] = (h_a + h_b)/2 S_ab,   D[S] = (1-π) h_a S_ab h_b + (π/n) Σ_i U_iᵀ (U_i S U_iᵀ) U_i,

with U_i the k rows of example i in F V. Source of C and D: Mulayoff & Michaeli, arXiv 2306.07850.
Everything here is float64 on the host, except products with 𝒦.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

Kernel = Callable[[np.ndarray], np.ndarray]
"""Products with 𝒦: (n k, m) ↦ (n k, m), float64."""

_DROP = 1e-6  # of the largest: directions of a Krylov basis below it are rounding
_SMALL = 1e-4  # squared length of what is left of a unit vector that was in the basis already


class Subspace(NamedTuple):
    """An orthonormal basis V = Fᵀ W in which H is diagonal."""

    coefficients: np.ndarray
    """W, (n k, r)."""
    images: np.ndarray
    """F V = 𝒦 W, (n k, r)."""
    outputs: int
    """k."""

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.images) // self.outputs

    @property
    def rank(self) -> int:
        """r."""
        return self.images.shape[1]

    @property
    def curvatures(self) -> np.ndarray:
        """Diagonal of Vᵀ H V, (r,)."""
        return np.sum(self.images**2, 0) / self.n

    def blocks(self, moments: np.ndarray) -> np.ndarray:
        """F_i V S Vᵀ F_iᵀ, (n, k, k)."""
        shape = (self.n, self.outputs, -1)
        left = (self.images @ moments).reshape(shape)
        return left @ np.swapaxes(self.images.reshape(shape), 1, 2)


def _scale(coefficients: np.ndarray, images: np.ndarray, drop: float) -> np.ndarray:
    """Returns the matrix that makes Fᵀ W orthonormal, without its dependent directions."""
    gram = coefficients.T @ images
    lengths = np.sqrt(np.maximum(np.diag(gram), np.finfo(float).tiny))
    gram = (gram + gram.T) / (2 * lengths[:, None] * lengths)
    values, vectors = np.linalg.eigh(gram)
    kept = values > drop * max(values[-1], 1.0)
    return vectors[:, kept] / np.sqrt(values[kept]) / lengths[:, None]


def extend(space: Subspace | None, columns: np.ndarray, kernel: Kernel, outputs: int) -> Subspace:
    """Returns the space with the directions Fᵀ c of more columns, (n k, m); H made diagonal."""
    kept = space.coefficients.shape[1] if space else 0
    new, images = columns, kernel(columns)
    for _ in range(2):
        scale = _scale(new, images, _SMALL)
        new, images = new @ scale, images @ scale
        if space is not None:
            overlap = space.images.T @ new
            new, images = new - space.coefficients @ overlap, images - space.images @ overlap
            left = np.einsum("im,im->m", new, images) > _SMALL
            new, images = new[:, left], images[:, left]
        if not new.shape[1]:
            break
        images = kernel(new)
    if new.shape[1]:
        scale = _scale(new, images, _SMALL)
        new, images = new @ scale, images @ scale
    if space is not None:
        new = np.concatenate([space.coefficients, new], 1)
        images = np.concatenate([space.images, images], 1)
    assert new.shape[1] >= kept
    _, rotation = np.linalg.eigh(images.T @ images)
    rotation = rotation[:, ::-1]
    return Subspace(new @ rotation, images @ rotation, outputs)


def carry(moments: np.ndarray, old: Subspace, new: Subspace) -> np.ndarray:
    """Returns a moment matrix of one subspace in the coordinates of another that contains it."""
    overlap = old.coefficients.T @ new.images
    return overlap.T @ moments @ overlap


def second(space: Subspace, factor: float, moments: np.ndarray) -> np.ndarray:
    """Returns D[S] in coordinates of V."""
    h = space.curvatures
    blocks = space.blocks(moments).astype(space.images.dtype)
    each = blocks @ space.images.reshape(space.n, space.outputs, -1)
    each = space.images.T @ each.reshape(space.images.shape)
    return (1 - factor) * h[:, None] * moments * h + factor / space.n * each


def dense_maximum(forms: np.ndarray, factor: float) -> float:
    """Returns max ⟨S, D S⟩ / ⟨S, C S⟩ for a few dimensions and H_i of any sign, (n, q, q).

    Directions along which the mean is not positive are left out; -inf if none is left.
    """
    values, vectors = np.linalg.eigh(forms.mean(0))
    kept = values > _DROP * max(values[-1], 0.0)
    if not kept.any() or values[-1] <= 0:
        return -np.inf
    forms, h = vectors[:, kept].T @ forms @ vectors[:, kept], values[kept]
    q = len(h)
    each = np.einsum("nab,ncd->acbd", forms, forms, optimize=True).reshape(q * q, q * q)
    matrix = (1 - factor) * np.diag(np.kron(h, h)) + factor / len(forms) * each
    root = np.sqrt((h[:, None] + h).ravel() / 2)
    return float(np.linalg.eigvalsh(matrix / (root[:, None] * root))[-1])


class Growing(NamedTuple):
    """The moment matrix that grows first, in a subspace."""

    value: float
    """⟨S, D S⟩ / ⟨S, C S⟩, a lower bound of λ* = 2 / threshold."""
    moments: np.ndarray
    """S, (r, r), of unit Frobenius norm; positive semi-definite."""
    blocks: np.ndarray
    """F_i S F_iᵀ, (n, k, k)."""
    shares: np.ndarray
    """(π/n) tr(S H_i S H_i) / ⟨S, D S⟩, (n,); with that of the mean curvature they sum to 1."""
    curvature: float
    """⟨S, C S⟩, 1/step size."""


def growing(
    space: Subspace, factor: float, *, tol: float, start: np.ndarray | None = None
) -> Growing:
    """Returns the S that maximises ⟨S, D S⟩ / ⟨S, C S⟩ over the subspace.

    The search is in float32, by Lanczos on C^(-1/2) D C^(-1/2); the quotient of what it finds, a
    lower bound whatever it found, in float64.
    """
    small = space._replace(images=space.images.astype(np.float32), coefficients=np.zeros((0, 0)))
    h = space.curvatures
    mean = (h[:, None] + h) / 2
    root = np.sqrt(mean).astype(np.float32)

    def product(x: np.ndarray) -> np.ndarray:
        return (second(small, factor, x.reshape(root.shape) / root) / root).ravel()

    # Positive semi-definite, and with a part along every direction.
    x = np.diag(h) if start is None else start
    x = x / np.linalg.norm(x) + 1e-2 * np.diag(h) / np.linalg.norm(h)
    size = root.size
    if size == 1:
        x = np.ones(1)
    else:
        operator = LinearOperator((size, size), matvec=product, dtype=np.float32)
        options = {"k": 1, "which": "LA", "tol": max(tol, 1e-5), "ncv": min(12, size)}
        try:
            x = eigsh(operator, v0=(x * root).ravel(), maxiter=40, **options)[1][:, 0]
        except ArpackNoConvergence as stopped:
            if stopped.eigenvectors.shape[1]:
                x = stopped.eigenvectors[:, 0]
            else:
                x = (x * root).ravel()
    s = x.reshape(root.shape).astype(float) / root
    s = (s + s.T) * np.sign(np.trace(s))
    values, vectors = np.linalg.eigh(s)
    s = (vectors * np.maximum(values, 0)) @ vectors.T  # Thm 14: there is a PSD maximiser
    s /= np.linalg.norm(s)
    blocks = space.blocks(s)
    shares = factor / space.n * np.sum(blocks**2, (1, 2))
    total = (1 - factor) * np.sum((h[:, None] * s) * (s * h)) + shares.sum()
    curvature = float(np.sum(mean * s * s))
    return Growing(float(total / curvature), s, blocks, shares / total, curvature)


def _columns(blocks: np.ndarray, count: int) -> np.ndarray:
    """The largest of all eigenpairs of the blocks, as columns in the space of outputs."""
    n, k, _ = blocks.shape
    top = np.argsort(-np.trace(blocks, axis1=1, axis2=2))[:50]
    values, vectors = np.linalg.eigh(blocks[top])
    order = np.argsort(-values.ravel())[:count]
    order = order[values.ravel()[order] > 0.05 * values.max()]
    columns = np.zeros((len(order), n, k))
    for column, i, j in zip(columns, *np.unravel_index(order, values.shape)):
        column[top[i]] = vectors[i][:, j]
    return columns.reshape(len(order), n * k).T


def _krylov(
    columns: np.ndarray, steps: int, kernel: Kernel, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean orthonormal basis Q of the block Krylov space of 𝒦/n from the columns, and 𝒦 Q."""
    basis = block = np.linalg.qr(columns)[0]
    images = kernel(block)
    for _ in range(steps - 1):
        block = images[:, -block.shape[1] :] / n
        size = np.linalg.norm(block)
        for _ in range(2):
            block = block - basis @ (basis.T @ block)
        block, triangle = np.linalg.qr(block)
        block = block[:, np.abs(np.diag(triangle)) > _DROP * max(size, np.finfo(float).tiny)]
        if not block.shape[1] or basis.shape[1] + block.shape[1] > len(basis):
            break
        basis = np.concatenate([basis, block], 1)
        images = np.concatenate([images, kernel(block)], 1)
    return basis, images


def grow(
    space: Subspace,
    found: Growing,
    factor: float,
    *,
    kernel: Kernel,
    add: int,
    columns: int = 6,
    products: int = 100,
) -> Subspace:
    """Returns the subspace with the directions that S misses.

    At the maximum D[S] = λ C[S], so S solves the Lyapunov equation

        λ (H S + S H)/2 - (1-π) H S H = (π/n) Σ_i F_iᵀ M_i F_i,      M_i = F_i S F_iᵀ,

    whose right-hand side is known from S and carried by a few examples. Its solution lies in the
    Krylov space of H from F_iᵀ m, m the eigenvectors of M_i: the equation is solved there, and the
    leading eigenvectors of the solution join V. (Plain residuals, the eigenvectors of
    D[S] - λ C[S], are the first step of that space only and take tens of growths instead of two.)
    """
    n, k = space.n, space.outputs
    start = _columns(found.blocks, columns)
    steps = int(np.clip(products // max(start.shape[1], 1), 8, 90))
    basis, images = _krylov(start, steps, kernel, n)
    scale = _scale(basis, images, _DROP)
    both = np.concatenate([space.coefficients, basis @ scale], 1)
    images = np.concatenate([space.images, images @ scale], 1)
    scale = _scale(both, images, _DROP)
    both, images = both @ scale, images @ scale
    values, rotation = np.linalg.eigh(images.T @ images / n)
    both, images = both @ rotation, images @ rotation
    weighted = found.blocks @ images.reshape(n, k, -1)
    right = factor / n * images.T @ weighted.reshape(images.shape)
    h = np.maximum(values, np.finfo(float).tiny)
    left = found.value * (h[:, None] + h) / 2 - (1 - factor) * h[:, None] * h
    # Positive while λ exceeds (1-π) a, which holds for the maximum; guarded where S is still poor.
    left = np.maximum(left, 0.05 * found.value * (h[:, None] + h) / 2)
    sizes, vectors = np.linalg.eigh(right / left)
    best = np.argsort(-sizes)[:add]
    return extend(space, both @ vectors[:, best], kernel, k)

"""Figures: labelled axes, theory dashed and named, no global state."""

import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from jaxstab import plots

N = 1000


def selection(scales=(0.5, 1.0)):
    boxes = {4: (1.0, 1.0), 10: (1.0, 1.6), N: (1.0, np.inf)}
    batch = np.repeat(list(boxes), len(scales))
    scale = np.tile(scales, len(boxes))
    a = np.linspace(0.2, 1.02, len(batch))
    return plots.selection(
        sharpness=a,
        nonuniformity=2 * a,
        batch_size=batch,
        init_scale=scale,
        learning_rate=2.0,
        boxes=boxes,
        n=N,
        title="title",
    )


def edge():
    eta = np.repeat([0.1, 0.5], 3)
    theirs = plots.Series("Table 2", [0.1], [19.6], [0.15], hollow=True, joined=False)
    return plots.edge(
        learning_rate=eta, sharpness=1.9 / eta, blew_up=[5.0], published=theirs, title="title"
    )


def mean_std():
    series = [plots.Series("one", [1, 2, 4], [1.0, 2.0, 3.0], [0.1, 0.1, 0.1])]
    lines = [plots.Line("bound", 2.5), plots.Line("theory", [1, 2, 3], [1, 2, 4])]
    return plots.mean_std(series, xlabel="x  [1]", ylabel="y  [1]", lines=lines, log_x=True)


def marginals():
    x = np.linspace(-2, 2, 50)
    panels = [
        plots.Histogram(
            f"d = {d}",
            np.linspace(-1, 1, 5),
            {"Langevin": np.full(4, 0.25), "SGD": np.full(4, 0.2)},
            x,
            np.exp(-(x**2)),
            {"SGD": np.full(4, 0.01)},
        )
        for d in range(4)
    ]
    return plots.marginals(panels, title="title")


def noise():
    sets = {"B = 1": np.linspace(-3, 3, 100), "B = 4": []}
    return plots.noise({"first": sets, "second": sets}, names={"first": "layer 1"}, title="title")


def groups():
    ours = {"all": (3.0, 0.3), "top": (1.0, 0.1)}
    return plots.groups(
        {"natural": ours, "published": {"all": (4.0, 0.2)}},
        ylabel="radius  [1]",
        hollow=["published"],
        lines=[plots.Line("one", 1.0)],
        log_y=True,
    )


def stability_map():
    bounds = {"eq. 8": [0.5, 2.0], "2/a": [2.0, 2.0], "none": [np.inf, np.inf]}
    ends = {"lower": [0.5, 2.0], "upper": [1.1, 2.0]}
    return plots.stability_map(batch_sizes=[1, 10], value=[1, 2], bounds=bounds, n=10, **ends)


def dashed(axes):
    return [line for line in axes.get_lines() if line.get_linestyle() == "--"]


@pytest.mark.parametrize(
    "draw", [selection, edge, mean_std, marginals, noise, groups, stability_map]
)
def test_every_axis_has_a_name_with_its_unit(draw, tmp_path):
    before = dict(matplotlib.rcParams)
    figure = draw()
    assert isinstance(figure, Figure)
    for axes in figure.axes:
        assert "[" in axes.get_ylabel()
        assert "[" in axes.get_xlabel() or axes.get_xticklabels()
        assert dashed(axes), "theory is dashed"
    figure.savefig(tmp_path / "f.png")
    assert dict(matplotlib.rcParams) == before


def legend(figure):
    legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
    return [text.get_text() for one in legends if one for text in one.get_texts()]


def test_selection_names_every_bound_and_series():
    names = legend(selection())
    assert names[:3] == ["B = 4", "B = 10", f"B = n = {N} (GD)"]
    assert "a = 2/η = 1" in names
    assert "bound of s, B = 4: 1" in names and "bound of s, B = 10: 1.6" in names
    assert not any("GD): inf" in name for name in names)  # the full batch has no bound of s
    assert names[-2:] == ["init scale 0.5", "init scale 1"]


def test_selection_draws_every_run_where_it_was_measured():
    figure = selection()
    drawn = [c.get_offsets() for c in figure.axes[0].collections]
    points = np.concatenate([points for points in drawn if len(points)])
    a = np.linspace(0.2, 1.02, 6)
    np.testing.assert_allclose(np.sort(points[:, 0]), a)
    np.testing.assert_allclose(np.sort(points[:, 1]), 2 * a)
    # 6 values of a and 4 of s (none for the full batch) on the right
    right = [c.get_offsets() for c in figure.axes[1].collections]
    assert sum(map(len, right)) == 10


def test_selection_without_a_single_minimum():
    figure = plots.selection(
        sharpness=[],
        nonuniformity=[],
        batch_size=[],
        init_scale=[],
        learning_rate=0.5,
        boxes={4: (4.0, 4.0)},
        n=N,
    )
    assert "a = 2/η = 4" in legend(figure)


def test_edge_shows_published_numbers_and_what_blew_up():
    figure = edge()
    assert "Table 2" in legend(figure) and "2/η" in legend(figure)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert len([text for text in texts if "blew up" in text]) == 2
    low, high = figure.axes[1].get_xlim()
    assert low < 0.1 and high > 5.0


def test_edge_without_a_single_minimum():
    plots.edge(learning_rate=[], sharpness=[], blew_up=[1.0])
    plots.edge(learning_rate=[], sharpness=[])


def test_colours_are_distinct_in_grey_and_named_once():
    assert len(set(plots.COLORS)) == len(plots.COLORS) == len(set(plots.MARKERS))


def test_marginals_leaves_no_empty_panel():
    assert [axes.get_title() for axes in marginals().axes] == [f"d = {d}" for d in range(4)]


def test_groups_stand_at_their_names_and_published_ones_are_hollow():
    figure = groups()
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["all", "top"]
    assert figure.axes[0].lines[-1].get_markerfacecolor() != "none"
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert hollow and legend(figure) == ["one", "natural", "published"]


def test_triangles_draw_contours_and_surfaces(tmp_path):
    corners = np.array([[0, 0], [1, 0], [0.5, np.sqrt(0.75)], [0.5, 0.1]])
    values = {"natural": np.array([1, 1, 1, 0.5]), "random": np.array([1, 1, 1, 0.1])}
    figure = plots.triangles(corners, values, quantity="accuracy  [1]", limits=(0, 1))
    surfaces = [axes for axes in figure.axes if hasattr(axes, "get_zlabel")]
    assert [axes.get_zlabel() for axes in surfaces] == ["accuracy  [1]"] * 2
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["natural", "random"]
    figure.savefig(tmp_path / "f.png")
    constant = plots.triangles(corners, {"a": np.ones(4)}, quantity="accuracy  [1]")
    constant.savefig(tmp_path / "f.png")


def test_curves_share_the_axis_of_steps():
    series = [plots.Series("SGD", [1, 2], [3.0, 1.0], [0.1, 0.1])]
    figure = plots.curves({"loss  [1]": series, "accuracy  [1]": series}, xlabel="step  [1]",
                          log_y=["loss  [1]"])  # fmt: skip
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]
    assert all(axes.get_xlabel() == "step  [1]" for axes in figure.axes)


def test_pyplot_is_never_imported():
    code = "import sys, jaxstab.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def point(batch_size, a, s, eta=0.5):
    where = {"batch_size": batch_size, "learning_rate": eta}
    return where | {"sharpness": a, "nonuniformity": s}


def test_the_stability_diagram_holds_every_region_point_and_minimum():
    simulated = [point(4, 2.0, 0.0) | {"simulated": 3.9, "simulated_error": 0.1}]
    minima = [point(4, 5.0, 6.0), point(100, 3.9, 9.0), point(4, np.nan, 1.0)]
    figure = plots.stability_diagram(
        n=100,
        batch_sizes=(4, 100),
        learning_rates=(0.5, 1.0),
        simulated=simulated,
        minima=minima,
        title="title",
    )
    left, right = figure.axes
    assert left.get_xlim()[1] > 5.0 and left.get_ylim()[1] > 9.0  # nothing is cut off
    offsets = [tuple(point) for one in left.collections[1:] for point in one.get_offsets()]
    assert (5.0, 6.0) in offsets and (3.9, 9.0) in offsets
    assert not any(len(one.get_offsets()) for one in right.collections[1:])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[0] == "B = 4" and labels[1].startswith("B = n = 100")
    assert "1/step size" in left.get_xlabel() and "1/step size" in left.get_ylabel()
    bare = plots.stability_diagram(n=100, batch_sizes=(100,), learning_rates=(0.5,))
    assert bare.axes[0].get_xlim()[1] > 4


def test_outcomes_and_trajectories_hold_every_run():
    rows = pd.DataFrame(
        {
            "sharpness_margin": [0.5, -0.5, -0.1],
            "nonuniformity_margin": [0.5, -1.0, 1.0],
            "outcome": ["stayed", "left", "too short"],
            "kind": "clean",
            "start": ["clean 0", "clean 0", "clean 1"],
        }
        | {name: [1.0, 2.0, 3.0] for name in ("start_sharpness", "end_sharpness")}
        | {name: [0.7, 0.8, 0.9] for name in ("start_test_accuracy", "end_test_accuracy")}
    )
    plane, ends = plots.outcomes(rows, ended=rows).axes
    assert [len(one.get_offsets()) for one in plane.collections] == [1, 1, 1]
    assert plane.collections[2].get_offsets()[0].tolist() == [1.1, 0.01]  # B = n: too short
    assert [len(one.get_offsets()) for one in ends.collections] == [3, 2]  # ends, starts
    assert plots.outcomes(rows, ended=rows[:0]).axes
    names = ("epochs", "loss", "sharpness", "train_accuracy")
    figure = plots.trajectories({"one": {name: [1.0, 2.0] for name in names}})
    assert [len(panel.get_lines()) for panel in figure.axes] == [1, 1, 1, 0]
    assert len(plots.trajectories({}).axes) == 4


def test_minima_by_optimizer_stand_beside_their_edges():
    rows = pd.DataFrame(
        {
            "optimizer": ["L-BFGS", "GD", "Adam"],
            "sharpness": [3.0, 1.0, 2.0],
            "nonuniformity": [3.0, 1.0, 2.0],
            "condition": ["a", "a", "λmax(D⁻¹H)"],
            "ratio": [np.nan, 0.97, 1.1],
        }
    )
    plane, ratios = plots.optimizers(rows).axes
    assert len(plane.collections) == 3 and len(ratios.collections) == 2
    labels = [label.get_text() for label in ratios.get_xticklabels()]
    assert labels == ["GD\na", "Adam\nλmax(D⁻¹H)"] and len(dashed(ratios)) == 1


def panels(points, entries):
    """Panels whose series bear the given names."""
    x, std = np.arange(3.0), np.full(3, 0.1)
    shown = [
        plots.Panel(
            "title",
            [plots.Series(name, x, x + 1, std) for name in names],
            "x  [1]",
            "y  [1]",
            lines=[plots.Line("theory", 1.0)],
            points=points,
        )
        for names in entries
    ]
    return plots.panels(shown)


def test_panels_with_the_same_entries_share_a_legend_below():
    figure = panels(False, [["a", "b"], ["a", "b"]])
    (shared,) = figure.legends
    assert [text.get_text() for text in shared.get_texts()] == ["a", "b", "theory"]
    assert not any(axes.get_legend() for axes in figure.axes)
    own = panels(False, [["a"], ["b"]])
    assert not own.legends and all(axes.get_legend() for axes in own.axes)


@pytest.mark.parametrize("points", [True, False])
def test_a_legend_hides_nothing(points):
    figure = panels(points, [["a"], ["b"]])
    figure.draw_without_rendering()
    for axes in figure.axes:
        box = axes.get_legend().get_window_extent()
        assert box.y1 <= axes.get_window_extent().y0  # below the axes
        assert box.y1 <= axes.xaxis.label.get_window_extent().y0  # and below their name
        assert box.y0 >= 0

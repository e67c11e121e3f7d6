"""How the site is built: `make docs`. Nothing of it needs a network, here or in a browser."""

import pathlib
import re
import sys
from importlib import metadata

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402

project = "jaxstab"
author = "the authors of jaxstab"
version = release = metadata.version("jaxstab")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
suppress_warnings = ["myst.header"]  # pages that were sections start lower
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "jaxstab"
html_theme_options = {"source_repository": "", "top_of_page_buttons": []}
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]
pygments_style = "tango"

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # saved with their outputs by `make notebooks`, run by the tests
nb_merge_streams = True
html_math_renderer = "mathml"

autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def plain_docstrings(app, what, name, obj, options, lines):
    """Docstrings here are plain text with `code`: what reStructuredText would read is escaped."""
    inside = False
    for i, line in enumerate(lines):
        inside = line.lstrip().startswith(">>>") or (inside and bool(line.strip()))
        if inside:
            continue
        parts = re.split(r"(`[^`]*`)", line)
        for j, part in enumerate(parts):
            if part.startswith("`"):
                parts[j] = f"``{part[1:-1].strip()}``" if part.strip("` ") else ""
                if j + 1 < len(parts) and re.match(r"\w", parts[j + 1]):
                    parts[j] += "\\ "
            else:
                parts[j] = re.sub(r"([*|])", r"\\\1", re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", part))
        lines[i] = "".join(parts)
    if what == "module":
        lines[:] = _literal_blocks(lines)
    elif what in ("attribute", "property"):
        lines.insert(0, "\\ ")  # else napoleon takes words before a colon for a type


def _literal_blocks(lines):
    """Indented lines become literal blocks."""
    found, indented = [], False
    for line in lines:
        if line.strip() and (line[0] == " ") != indented:
            indented = not indented
            found += ["", "::", ""] if indented else [""]
        found.append(line.replace("\\", "") if indented else line)
    return found


def _mathml(display):
    def visit(self, node):
        import docutils.nodes
        from latex2mathml.converter import convert

        self.body.append(convert(node.astext(), display="block" if display else "inline"))
        raise docutils.nodes.SkipNode

    return visit


def setup(app):
    """Writes the generated pages before anything is read."""
    app.connect("autodoc-process-docstring", plain_docstrings, priority=400)
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_mathml(False), None), block_renderers=(_mathml(True), None)
    )
    generate.write(HERE)

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
    """Docstrings here are plain text with `code`: what reStructuredText would read is escaped.

    Examples, directives (`.. math::`) and roles stay as they are.
    """
    found, text, kept = [], [], ""  # kept: inside an example, or a directive of this indentation
    for line in lines:
        start = line.lstrip()
        if kept == ">>>":
            kept = kept if start else ""
        elif kept and start and len(line) - len(start) <= len(kept):
            kept = ""
        if not kept and start.startswith((">>>", ".. ")):
            kept = ">>>" if start.startswith(">") else " " * (len(line) - len(start)) or "\0"
        if kept:
            found += [*_escape(text), line]
            text = []
        else:
            text.append(line)
    lines[:] = found + _escape(text)
    if what == "module":
        lines[:] = _literal_blocks(lines)
    elif what in ("attribute", "property"):
        lines.insert(0, "\\ ")  # else napoleon takes words before a colon for a type


def _escape(lines):
    """Text in which `code` is literal, also over the end of a line, and no sign is markup."""
    parts = re.split(r"(:[a-z]+:`[^`]*`|`[^`]+`)", "\n".join(lines))
    for i, part in enumerate(parts):
        if part.startswith("`") and part.endswith("`"):
            follows = parts[i + 1] if i + 1 < len(parts) else ""
            parts[i] = f"``{part.strip('`').strip()}``" + ("\\ " if follows[:1].isalnum() else "")
        elif not re.fullmatch(r":[a-z]+:`[^`]*`", part):
            parts[i] = re.sub(r"([*|])", r"\\\1", re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", part))
    return "".join(parts).split("\n") if lines else []


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


def _skip_fields(app, what, name, obj, skip, options):
    """Leaves out what a NamedTuple says of its fields: the class does, under its attributes."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def _site_links(app, name, source):
    source[0] = generate.site_links(source[0])


def setup(app):
    """Writes the generated pages before anything is read."""
    app.connect("autodoc-process-docstring", plain_docstrings, priority=400)
    app.connect("source-read", _site_links)
    app.connect("autodoc-skip-member", _skip_fields)
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_mathml(False), None), block_renderers=(_mathml(True), None)
    )
    generate.write(HERE)

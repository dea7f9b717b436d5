"""The layers of docs/architecture.md, and its image of the rules of a chain."""

import ast
import html
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
DECLARATIONS = (
    "stages.families",
    "stages.families.shared.common_options",
    "stages.media.options",
    "stages.media.folders",
    "stages.media.scores.figures",
)


def own_imports():
    """Yield each import of our own code, also inside functions: the importing module and the imported module."""
    for path in sorted((ROOT / "stages").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if is_module(name) else node.module for name in inside]
            yield from ((module, name) for name in names if name.split(".")[0] == "stages")


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def layer(module: str) -> str:
    """The folder below stages; empty for the executables."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / "stages" / parts[1]).is_dir() else ""


def test_imports_go_only_to_lower_layers():
    allowed = {
        "": {"", "plan", "families", "media", "runtime"},
        "plan": {"plan", "runtime"},
        "families": {"families", "media", "runtime"},
        "media": {"media", "runtime"},
        "runtime": {"runtime"},
    }
    found = set(own_imports())
    assert {layer(module) for module, _ in found} == set(allowed)
    for module, name in found:
        declares = layer(module) == "plan" and name in DECLARATIONS
        assert layer(name) in allowed[layer(module)] or declares, f"{module} imports {name}"


def test_no_family_imports_another_family():
    for module, name in own_imports():
        if layer(module) == layer(name) == "families" and name != "stages.families":
            assert name.split(".")[2] in ("shared", module.split(".")[2]), f"{module} imports {name}"


def test_a_fused_job_needs_no_package_of_the_workflow():
    """The images of the stages have none of them."""
    absent = "import sys; sys.modules.update(dict.fromkeys(('psutil', 'snakemake', 'PIL'))); import stages.fused"
    assert subprocess.run([sys.executable, "-c", absent]).returncode == 0


def test_the_image_of_a_chain_is_its_rulegraph(tmp_path):
    """The command of the page, run in a folder without results, gives the names and arrows of the image."""
    (command,) = re.findall(r"^    (snakemake .* --rulegraph)$", PAGE, re.M)
    for name in ("config.yaml", "examples", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    program = f"{sys.executable} -m {command} --snakefile {ROOT / 'Snakefile'}"
    process = subprocess.run(program, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    names = dict(re.findall(r'^\s*(\d+)\[label = "([^"]+)"', process.stdout, re.M))
    arrows = {(names[a], names[b]) for a, b in re.findall(r"^\s*(\d+) -> (\d+)$", process.stdout, re.M)}
    assert len(names) == 13 and len(arrows) == 20
    drawing = html.unescape((ROOT / "docs/images/chain-rules.svg").read_text())
    labels = dict(re.findall(r"<title>(\d+)</title>.*?<text [^>]*>([^<]+)</text>", drawing, re.S))
    drawn = {(labels[a], labels[b]) for a, b in re.findall(r"<title>(\d+)->(\d+)</title>", drawing)}
    assert drawn == arrows

"""Planning and --help import declarations only, not the libraries for images and models."""

import subprocess
import sys

from stages.families import FAMILIES

BLOCKED = ("torch", "numpy", "PIL", "cv2", "av", "diffusers", "transformers", "safetensors")
CODE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed", name=name)

sys.meta_path.insert(0, Blocker())
import stages.plan, stages.media.options
from stages.families import FAMILIES
print(*FAMILIES)
"""


def test_plan_and_options_import_without_model_and_image_libraries():
    code = CODE.format(blocked=BLOCKED)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == [*FAMILIES]

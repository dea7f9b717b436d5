"""Where Kinemake is: its code, and the files beside the code, such as the Snakefile, config.yaml and the shipped models."""

from pathlib import Path

CODE = Path(__file__).parents[2]  # the folder that holds the package `stages`
CHECKOUT = CODE if (CODE / "Snakefile").is_file() else CODE / "kinemake"  # a wheel has the files of the checkout there

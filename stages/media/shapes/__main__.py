"""Write a data set of shapes world: `python -m stages.media.shapes FOLDER`."""

from pathlib import Path

import click
from tqdm import tqdm

from stages.runtime.cli import DEBUG, clean_errors


@click.command(no_args_is_help=True)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Number of clips.")
@click.option("--size", type=click.IntRange(32), default=128, show_default=True, help="Side of the frames [pixels], even.")
@click.option("--frames", type=click.IntRange(1), default=17, show_default=True, help="Length of a clip [frames].")
@click.option("--fps", type=click.FloatRange(1), default=8, show_default=True, help="Frame rate [frames per second].")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random scenes.")
@click.option("--held-out", is_flag=True, help="Only combinations of colour and shape that are held out from training.")
@clean_errors
def main(folder: Path, count: int, fps: float, debug: bool, **options) -> None:
    """Write clips of moving coloured shapes, their captions and their scenes into FOLDER."""
    from stages.media.shapes import dataset

    for _ in tqdm(dataset.write(folder, dataset.draw(count, **options), fps), total=count, unit="clip", disable=None):
        pass


main.params.append(DEBUG)

if __name__ == "__main__":
    main()

"""Carry translated keyframes to the frames between them."""

from stages.media.options import FAMILY
from stages.runtime.cli import stage_command
from stages.runtime.stages import STAGES

main = stage_command(STAGES["propagate"], {"media": FAMILY})

if __name__ == "__main__":
    main()

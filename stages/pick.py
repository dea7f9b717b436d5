"""Choose one of several takes."""

from stages.media.options import FAMILY
from stages.runtime.cli import stage_command
from stages.runtime.stages import STAGES

main = stage_command(STAGES["pick"], {"media": FAMILY})

if __name__ == "__main__":
    main()

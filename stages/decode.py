"""Turn latents into a clip."""

from stages.families import FAMILIES
from stages.runtime.cli import stage_command
from stages.runtime.stages import STAGES

main = stage_command(STAGES["decode"], FAMILIES)

if __name__ == "__main__":
    main()

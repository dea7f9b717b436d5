"""Turn a prompt and a first frame into what the denoiser needs."""

from stages.families import FAMILIES
from stages.runtime.cli import stage_command
from stages.runtime.stages import STAGES

main = stage_command(STAGES["encode"], FAMILIES)

if __name__ == "__main__":
    main()

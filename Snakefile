# The plan becomes a DAG: a rule per shard of each stage. What to make is in config.yaml.
#
# The chain of the stages, of which a recipe takes those that it needs:
#
#     extract_frames --> caption_vlm --> encode --> generate --> decode --> concat --> CLIP.mp4
#                                           ^                      | |        ^
#                                           +--- next link --------+ +-- propagate (fresco)
#
# So `v2v` has the rules RUN.extract_frames.000, RUN.caption_vlm.000, ... with a number per shard. In a run with `fuse: true`, as
# `chain` is by default, one rule does all of them up to decode, of every link: RUN.fused.000. With `fuse: false` a chain has a
# rule per stage of each link, RUN.generate.link02.000. docs/architecture.md has what `snakemake --rulegraph` draws of a run.
import os
import sys
from pathlib import Path

from snakemake.settings.types import DeploymentMethod
from snakemake.utils import min_version

min_version("9.27")

sys.path.insert(0, str(workflow.basedir))
from stages import plan

methods = workflow.deployment_settings.deployment_method
OWN = plan.own_stages(workflow.basedir, deployed=bool(methods), is_main_process=workflow.is_main_process)
try:
    plan.check_files([*workflow.configfiles, "config.yaml"])
except plan.UsageError as error:
    sys.exit(f"error: {error}")  # an exception would be shown with a traceback

GIVEN, PLACES = plan.run_names(config), plan.model_places(config)  # in --configfile and --config


configfile: "config.yaml"


# Whether jobs run on other machines. There they request cores for reading weights and encoding films; on this machine --cores
# counts the jobs. Snakemake knows its executor later; without a number of nodes it is the local one.
REMOTE = not workflow.is_main_process or workflow.resource_settings.nodes is not None

try:
    plan.keep_runs(config, GIVEN)
    plan.keep_places(config, PLACES)
    if workflow.is_main_process:
        plan.refuse_delete(sys.argv)
    workers = plan.count_workers(workflow.global_resources)
    PLAN = plan.load(config, workers, whole=not workflow.is_main_process)  # a job of a cluster is one of the first plan
    if workflow.is_main_process:
        plan.name_user()
        PLAN.begin()
        if not REMOTE and PLAN.needs_gpu and (note := plan.explain_devices(workflow.global_resources)):
            print(note, file=sys.stderr)
    if DeploymentMethod.APPTAINER in methods:
        os.environ.update(PLAN.container_environment())
except plan.UsageError as error:
    sys.exit(f"error: {error}")

IMAGES = f"{workflow.basedir}/containers"  # Snakemake would look for them in the working folder


def asked(find):
    """What `find` says of a target that Snakemake is asked for by name; what is wrong with the command line ends it."""
    try:
        PLAN.check_request(workflow.dag_settings)
        return find()
    except plan.UsageError as error:
        sys.exit(f"error: {error}")


def before(folder, spelling, film):
    """What is to be made where a film is asked for by its name."""
    marks = PLAN.before_film(folder, film)
    if marks:
        workflow.dag.forcefiles.add(f"{spelling}/{film}")  # or Snakemake would take a film that is there for current
    return marks


rule all:
    default_target: True
    input:
        lambda wildcards: asked(lambda: PLAN.everything),


for target in PLAN.targets:

    rule:
        name:
            target
        input:
            lambda wildcards, target=target: asked(lambda: PLAN.targets[target]),


for run, mark in PLAN.descriptions.items():

    rule:
        name:
            f"{run}.{plan.DESCRIBE}"
        output:
            touch(mark),  # what describes the run is written when the work starts: here is work
        localrule: True


for broken in PLAN.broken:

    rule:
        name:
            broken.name
        output:
            broken.output,
        log:
            broken.log,
        retries: 0
        localrule: True
        params:
            reason=lambda wildcards, broken=broken: f"error: {broken.reason}",
        shell:
            "printf '%s\\n' {params.reason:q} > {log:q}; exit 1"


for job in PLAN.jobs:

    rule:
        name:
            job.name
        input:
            lambda wildcards, job=job: job.inputs if workflow.is_main_process else [],
        output:
            job.mark,
        log:
            job.log,
        priority: int(job.makes_films)  # films as soon as they can be made: Snakemake looks at all that waits after every job
        retries: 0 if job.makes_films else None  # what fails there is a clip's own fault
        conda:
            f"envs/{job.extra}.yaml"
        container:
            f"{IMAGES}/{job.image}.sif"
        threads: job.cores if REMOTE else 1
        resources:
            gpu=job.gpu,
            mem_mb=lambda wildcards, attempt, job=job: job.mem_mb(attempt),
            runtime=lambda wildcards, attempt, job=job: job.runtime(attempt),
        params:
            command=lambda wildcards, threads, job=job: OWN + job.command(threads),
        shell:
            "{params.command} 2> {log:q} && : > {output:q}"


for weights in PLAN.weights:

    rule:
        name:
            weights.name
        input:
            weights.inputs,
        output:
            weights.output,
        log:
            weights.log,
        localrule: True  # where there is a network, if anywhere; and so in no container
        conda:
            f"envs/{weights.extra}.yaml"
        params:
            fingerprint=weights.fingerprint,
            command=OWN + weights.command(),
        shell:
            "{params.command} 2> {log:q}"


for training in PLAN.trainings:

    rule:
        name:
            training.rule
        input:
            training.inputs,
        output:
            training.output,
        log:
            training.log,
        conda:
            "envs/train.yaml"
        container:
            f"{IMAGES}/train.sif"
        threads: plan.CORES if REMOTE else workflow.cores
        resources:
            gpu=1,
            mem_mb=lambda wildcards, attempt: 16_000 * attempt,
            runtime=1440,
        params:
            fingerprint=training.fingerprint,
            command=lambda wildcards, threads, training=training: OWN + training.command(threads),
        message:
            training.message
        shell:
            "{params.command} 2> {log:q}"


for name, (folder, spelling) in PLAN.spellings.items():

    rule:
        name:
            name
        input:
            lambda wildcards, folder=folder, spelling=spelling: asked(lambda: before(folder, spelling, wildcards.film)),
        output:
            f"{spelling}/{{film}}",
        wildcard_constraints:
            film=r".+\.mp4",


for folder, marks in PLAN.film_marks.items():

    rule:
        name:
            f"{Path(folder).name}.concat.film"
        input:
            lambda wildcards, folder=folder: PLAN.film(folder, wildcards.film).inputs if workflow.is_main_process else [],
        output:
            f"{marks}/films/{{film}}",  # only for those who ask for a film by its name
        log:
            f"{folder}/steps/logs/films/{{film}}.log",
        wildcard_constraints:
            film=r".+\.mp4",
        priority: 1
        retries: 0
        conda:
            "envs/frames.yaml"
        container:
            f"{IMAGES}/concat.sif"
        resources:
            mem_mb=lambda wildcards, attempt, folder=folder: PLAN.film(folder, wildcards.film).mem_mb(attempt),
            runtime=lambda wildcards, attempt, folder=folder: PLAN.film(folder, wildcards.film).runtime(attempt),
        params:
            command=lambda wildcards, threads, folder=folder: OWN + PLAN.film(folder, wildcards.film).command(threads),
        shell:
            "{params.command} 2> {log:q} && : > {output:q}"


onstart:
    plan.end_on_sigterm()
    plan.limit_timers(workflow.scheduler)
    try:
        PLAN.write(job.rule.name for job in workflow.dag.needrun_jobs())
    except plan.UsageError as error:
        sys.exit(f"error: {error}")


onsuccess:
    PLAN.write_scores()
    print(plan.summarise(PLAN), file=sys.stderr)
    plan.end_at_once_on_sigterm()


onerror:
    PLAN.write_scores()
    print(plan.summarise(PLAN, failed=True), file=sys.stderr)
    plan.end_at_once_on_sigterm()

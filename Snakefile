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
#
# Another workflow can import it as a module: docs/modules.md. Then its config is that of the module statement, and onstart,
# onsuccess and onerror at the end of this file join those of that workflow.
import os
import sys
from pathlib import Path

from snakemake.io import IOFile, flag
from snakemake.path_modifier import PATH_MODIFIER_FLAG
from snakemake.settings.types import DeploymentMethod
from snakemake.utils import min_version

min_version("9.27")

VERSION = "0.1.0"  # of the package that this file needs
HERE = str(workflow.current_basedir)
sys.path.insert(0, HERE)  # a remote module has no folder: it needs the installed package
try:
    from stages import plan
except ModuleNotFoundError as error:
    sys.exit(f"error: the Python package {error.name} is missing: pip install 'kinemake[workflow]=={VERSION}'")

IS_MODULE = not workflow.modifier.is_main_snakefile()
methods = workflow.deployment_settings.deployment_method
OWN = plan.own_stages(deployed=bool(methods), is_main_process=workflow.is_main_process)
try:
    plan.check_version(VERSION, HERE)
    if IS_MODULE:
        config = plan.module_config(config, workflow.modifier.modify_path)
    else:
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
    if workflow.is_main_process and not IS_MODULE:
        plan.refuse_delete(sys.argv)
    workers = plan.count_workers(workflow.global_resources)
    config = plan.with_own_models(config)
    PLAN = plan.load(config, workers, whole=not workflow.is_main_process)  # a job of a cluster is one of the first plan
    if workflow.is_main_process:
        plan.name_user()
        PLAN.begin()
        if not REMOTE and PLAN.needs_gpu and (note := plan.explain_devices(workflow.global_resources)):
            print(note, file=sys.stderr)
    # the page of each run, for snakemake --report
    PAGES = plan.write_single_pages(PLAN) if workflow.is_main_process and plan.asks_report(sys.argv) else {}
    if DeploymentMethod.APPTAINER in methods:
        os.environ.update(PLAN.container_environment())
except plan.UsageError as error:
    sys.exit(f"error: {error}")

IMAGES = f"{plan.CHECKOUT}/containers"  # Snakemake would look for them in the working folder
ENVS = f"{plan.CHECKOUT}/envs"
FILMS = PLAN.films_of_runs  # by run: another workflow takes them as input
RULES = {workflow.modifier.modify_rulename(name): name for name in PLAN.rules()}  # a module's rules may have other names


def own(path):
    """A path of the plan, which is complete: the prefix of a module is in it."""
    return flag(path, PATH_MODIFIER_FLAG) if IS_MODULE else path


def needs(find):
    """The input function of a rule whose inputs `find` returns, given the wildcards."""

    def inputs(wildcards):
        if IS_MODULE:
            join_events()
        return [own(path) for path in find(wildcards)]

    return inputs


def asked(find):
    """What `find` says of a target that Snakemake is asked for by name; what is wrong with the command line ends it."""
    try:
        if not IS_MODULE:  # another workflow may force its own rules
            PLAN.check_request(workflow.dag_settings)
        return find()
    except plan.UsageError as error:
        sys.exit(f"error: {error}")


def before(folder, spelling, film):
    """What is to be made where a film is asked for by its name."""
    marks, path = PLAN.before_film(folder, film, describes=not IS_MODULE), f"{spelling}/{film}"
    if marks:
        workflow.dag.forcefiles.add(path)  # or Snakemake would take a film that is there for current
    elif IS_MODULE:
        # or Snakemake would miss the mark that it waited for when the film was made
        workflow.persistence.cleanup_metadata(IOFile(path))
    return marks


def reported(runs):
    """The pages of runs, which Snakemake puts into its report. They are inputs, because a finished run has no job."""
    return [report(own(PAGES[run]), category="Films", labels={"run": run}) for run in runs if run in PAGES]


rule all:  # the first rule is the default target, and where this is a module, another workflow's may be
    input:
        needs(lambda wildcards: asked(lambda: PLAN.everything)),
        reported(PAGES),


for target in PLAN.targets:

    rule:
        name:
            target
        input:
            needs(lambda wildcards, target=target: asked(lambda: PLAN.targets[target])),
            reported([target]),


for run, mark in PLAN.descriptions.items():

    rule:
        name:
            f"{run}.{plan.DESCRIBE}"
        input:
            needs(lambda wildcards: []),
        output:
            touch(own(mark)),  # what describes the run is written when the work starts: here is work
        localrule: True


for broken in PLAN.broken:

    rule:
        name:
            broken.name
        input:
            needs(lambda wildcards: []),
        output:
            own(broken.output),
        log:
            own(broken.log),
        retries: 0
        localrule: True
        params:
            reason=lambda wildcards, broken=broken: f"error: {broken.reason}",
        shell:
            "printf '%s\\n' {params.reason:q} > {log:q}; exit 1"


for job in (*PLAN.jobs, *PLAN.caption_jobs):

    rule:
        name:
            job.name
        input:
            needs(lambda wildcards, job=job: job.inputs if workflow.is_main_process else []),
        output:
            own(job.mark),
        log:
            own(job.log),
        priority: int(job.makes_films)  # films as soon as they can be made: Snakemake looks at all that waits after every job
        retries: 0 if job.makes_films else None  # what fails there is a clip's own fault
        conda:
            f"{ENVS}/{job.extra}.yaml"
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
            needs(lambda wildcards, weights=weights: weights.inputs),
        output:
            own(weights.output),
        log:
            own(weights.log),
        localrule: True  # where there is a network, if anywhere; and so in no container
        conda:
            f"{ENVS}/{weights.extra}.yaml"
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
            needs(lambda wildcards, training=training: training.inputs),
        output:
            own(training.output),
        log:
            own(training.log),
        conda:
            f"{ENVS}/train.yaml"
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
            needs(
                lambda wildcards, folder=folder, spelling=spelling: asked(lambda: before(folder, spelling, wildcards.film))
            ),
        output:
            own(f"{spelling}/{{film}}"),
        wildcard_constraints:
            film=r".+\.mp4",


for folder, marks in PLAN.film_marks.items():

    rule:
        name:
            f"{Path(folder).name}.concat.film"
        input:
            needs(
                lambda wildcards, folder=folder: (
                    PLAN.film(folder, wildcards.film).inputs if workflow.is_main_process else []
                )
            ),
        output:
            own(f"{marks}/films/{{film}}"),  # only for those who ask for a film by its name
        log:
            own(f"{folder}/steps/logs/films/{{film}}.log"),
        wildcard_constraints:
            film=r".+\.mp4",
        priority: 1
        retries: 0
        conda:
            f"{ENVS}/frames.yaml"
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
        PLAN.write(RULES[job.rule.name] for job in workflow.dag.needrun_jobs() if job.rule.name in RULES)
    except plan.UsageError as error:
        sys.exit(f"error: {error}")


onsuccess:
    PLAN.write_tables()
    print(plan.summarise(PLAN), plan.write_pages(PLAN), sep="", file=sys.stderr)
    plan.end_at_once_on_sigterm()


onerror:
    PLAN.write_tables()
    print(plan.summarise(PLAN, failed=True), plan.write_pages(PLAN), sep="", file=sys.stderr)
    plan.end_at_once_on_sigterm()


if IS_MODULE:
    join_events = plan.EventsOnce(workflow, onstart, onsuccess, onerror)

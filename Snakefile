# The plan becomes a DAG: a rule per shard of each stage, a job per film. What to make is in config.yaml.
import os
import sys
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, str(workflow.basedir))
from stages import plan

methods = workflow.deployment_settings.deployment_method
OWN = plan.own_stages(workflow.basedir, deployed=bool(methods))
try:
    plan.check_files([*workflow.configfiles, "config.yaml"])
except plan.UsageError as error:
    sys.exit(f"error: {error}")  # an exception would be shown with a traceback


configfile: "config.yaml"


limits = workflow.global_resources
workers = next((limits[name].value for name in ("gpu", "_cores") if name in limits), 1)
try:
    PLAN = plan.load(config, workers, whole=not workflow.is_main_process)  # a job of a cluster is one of the first plan
    if workflow.is_main_process:
        PLAN.begin()
    if DeploymentMethod.APPTAINER in methods:
        os.environ.update(PLAN.container_environment())
except plan.UsageError as error:
    sys.exit(f"error: {error}")

IMAGES = f"{workflow.basedir}/containers"  # Snakemake would look for them in the working folder


rule all:
    default_target: True
    input:
        lambda wildcards: plan.refuse_force(workflow.dag_settings) or PLAN.everything,


for run, films in PLAN.targets.items():

    rule:
        name:
            run
        input:
            lambda wildcards, films=films: films,  # looked at only when the run is asked for by name


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
        conda:
            f"envs/{job.stage.extra}.yaml"
        container:
            f"{IMAGES}/{job.stage.name}.sif"
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
        output:
            weights.output,
        log:
            weights.log,
        localrule: True  # where there is a network, if anywhere; and so in no container
        conda:
            "envs/weights.yaml"
        params:
            fingerprint=weights.fingerprint,
            command=OWN + weights.command(),
        shell:
            "{params.command} 2> {log:q}"


for training in PLAN.trainings:

    rule:
        name:
            f"training.{training.name}"
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
        threads: workflow.cores
        resources:
            gpu=1,
            mem_mb=lambda wildcards, attempt: 16_000 * attempt,
            runtime=1440,
        params:
            fingerprint=training.fingerprint,
            command=lambda wildcards, threads, training=training: OWN + training.command(threads),
        shell:
            "{params.command} 2> {log:q}"


for folder in PLAN.folders:

    rule:
        name:
            f"{Path(folder).name}.film"
        input:
            lambda wildcards, folder=folder: PLAN.before_film(folder, wildcards.film),
        output:
            f"{folder}/{{film}}",  # only for those who ask for a film by its name
        wildcard_constraints:
            film=r".+\.mp4",


for folder, film in PLAN.makers.items():

    rule:
        name:
            f"{Path(folder).name}.concat"
        input:
            lambda wildcards, folder=folder: (PLAN.film(folder, wildcards.film).inputs if workflow.is_main_process else []),
        output:
            f"{film.marks}/films/{{film}}",  # with its ending: names may end in many equal characters, wildcards may not
        log:
            f"{folder}/steps/logs/films/{{film}}.log",
        wildcard_constraints:
            film=r".+\.mp4",
        priority: 1  # films as soon as they can be made: Snakemake looks at all that waits again after every job
        retries: 0  # what fails here is the clip's own fault
        conda:
            "envs/frames.yaml"
        container:
            f"{IMAGES}/concat.sif"
        resources:
            mem_mb=film.mem_mb(1),  # numbers: Snakemake looks at each function of each of thousands of films several times
            runtime=film.runtime(1),
        params:
            command=lambda wildcards, threads, folder=folder: OWN + PLAN.film(folder, wildcards.film).command(threads),
        shell:
            "{params.command} 2> {log:q} && : > {output:q}"


onstart:
    plan.end_on_sigterm()
    try:
        PLAN.write()
    except plan.UsageError as error:
        sys.exit(f"error: {error}")


onsuccess:
    print(PLAN.summary(), file=sys.stderr)


onerror:
    print(PLAN.summary(failed=True), file=sys.stderr)

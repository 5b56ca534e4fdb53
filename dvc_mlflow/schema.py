"""Every name that we write into the stores of users, with its meaning.

These names are a data format: none is ever renamed, because runs of years ago have it.
"""

# --- tags of a run ---
STAGE = "stage"  # as `dvc repro` calls it in the folder of its project; or PIPELINE
PROJECT = "project"  # the folder of the DVC project, from the root of the repository
RESULT = "result"  # a hash of stage, command, settings, deps and outs, as dvc.lock has them
OUT = "out:"  # before the path of an out: its md5
READ = "read"  # a hash of deps and settings: it links a run that the stage's own code began
STATE = "pipeline"  # of a run over all stages, instead of outs: a hash of what links their runs
FILES = "declared"  # of such a run: a hash of the dvc.yaml and dvc.lock it shows (after 1.0.0)
COMMIT = "commit"  # the code that ran, or the commit that the run was written from
DIRTY = "dirty"  # `true` if files differed from that commit, else `false`
EXPERIMENT = "dvc_experiment"  # the name of the DVC experiment
BASELINE = "dvc_experiment_baseline"  # the commit that the DVC experiment started from
BACKFILLED = "backfilled"  # `true`: `sync` wrote the run, from files
ARTIFACTS = "artifacts"  # JSON: the bytes of each file at the top, null for a folder
MISSING = "missing"  # JSON: the paths that were not here when the run was written
PROCESS = "process"  # who writes or wrote it: machine, number and start of a process
REASON = "reason"  # why it did not finish
RUN = (STAGE, PROJECT, RESULT, OUT, READ, STATE, FILES, COMMIT, DIRTY, EXPERIMENT, BASELINE,
       BACKFILLED, ARTIFACTS, MISSING, PROCESS, REASON)  # fmt: skip

# --- tags of a logged model, of a version in the registry, and of the registered model ---
MD5 = "md5"  # of the out that the model was made from
FILE = "file"  # the path of that out
MODEL = "model"  # the name of the logged model
EVALUATION = "evaluation"  # the id of the run that keeps the evidence
CHAMPION = "champion"  # an alias, and a tag with the md5 by which a lost alias comes back

# --- of an experiment that is a claim; its PROCESS is the holder ---
CLAIM = "-claim"  # after the name of the experiment that is written
BEAT = "beat"  # a number that changes while the holder is alive

# --- other names ---
PIPELINE = "pipeline"  # the run over all stages, and its STAGE
SCORE = "trained_model."  # before a score of a model: MLflow then shows its charts after `loss`,
# `test_...` and `train_...`
TABLES = "tables"  # the folder of artifacts with plots as tables of MLflow

# --- names that MLflow itself reads ---
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"  # the description, in Markdown
USER = "mlflow.user"
SOURCE = "mlflow.source.name"  # the command, or the path of a data set
SOURCE_TYPE = "mlflow.source.type"
SOURCE_COMMIT = "mlflow.source.git.commit"
COLOR = "mlflow.runColor"
CONTEXT = "mlflow.data.context"  # of a data set: `dep`, `training` or `evaluation`
VERSIONS = "mlflow.modelVersions"  # of a logged model: JSON of its versions
KIND = "mlflow.experimentKind"
VIEW = "mlflow.sharedViewState."  # before the key of a view of the page of runs

"""What a mistyped option, setting, command or value most likely means: another tool's word for it, or a misspelling.

The sentences about a command line that cannot be parsed are here too.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence

_CUTOFF = 0.7
"""Similarity below which nothing is suggested, see difflib.SequenceMatcher.ratio."""

# Words of timm, Hugging Face's Trainer, Keras, Lightning, torchvision's references and torchrun.
_WORDS = {
    "accumulate": "accumulate-grad-batches gradient-accumulation-steps grad-accum-steps grad-accum accum",
    "activation": "act act-layer nonlinearity",
    "augment": "aug augmentation augmentations data-augmentation",
    "backbone": "model model-name model-name-or-path arch architecture encoder network",
    "batch-norm": "bn batchnorm use-bn",
    "batch-size": "b bs batch train-batch-size per-device-train-batch-size global-batch-size",
    "cache-dir": "cache cache-path work-dir data-cache",
    "checkpoint-minutes": "save-every save-steps save-interval checkpoint-interval",
    "colour": "color color-jitter colour-jitter jitter",
    "class-weights": "class-weight loss-weights",
    "compile": "torch-compile torchcompile",
    "crop-scale": "scale min-scale",
    "cutmix": "cutmix-alpha",
    "data": "data-dir data-path data-root dataset dataset-dir dataset-name dataset-uri train-dir train-data input",
    "dense": "dense-units units hidden hidden-size fc",
    "deterministic": "reproducible",
    "devices": "gpus gpu num-gpus n-gpus n-gpu ngpus num-devices nproc-per-node",
    "dropout": "drop drop-rate dropout-rate",
    "early-stop": "patience early-stopping early-stopping-patience",
    "ema": "model-ema model-ema-decay ema-decay",
    "epochs": "epoch num-epochs n-epochs max-epochs nb-epoch num-train-epochs",
    "erase": "reprob random-erase random-erasing",
    "filters": "num-filters channels num-channels width",
    "filter-organisation": "filter-organization organisation organization",
    "force": "overwrite overwrite-output-dir",
    "image-size": "img-size img imgsz image size input-size resolution res",
    "init-from": "initial-checkpoint finetune-from load-from",
    "kernel-sizes": "kernel-size kernel kernels",
    "label-smoothing": "smoothing label-smoothing-factor",
    "layer-decay": "lr-decay layerwise-lr-decay",
    "log-format": "log-level logging log",
    "lr": "learning-rate base-lr initial-lr max-lr init-lr",
    "max-time": "time-limit max-duration time-budget",
    "mixup": "mixup-alpha",
    "num-nodes": "nodes nnodes machines",
    "optimiser": "optimizer opt optim",
    "output": "output-dir out out-dir save-dir save-path log-dir logdir results-dir default-root-dir",
    "precision": "amp fp16 bf16 mixed-precision half dtype",
    "preset": "recipe mode profile",
    "print-config": "show-config dump-config",
    "rendezvous-minutes": "rdzv-timeout rendezvous-timeout join-timeout dist-timeout",
    "resume": "resume-from resume-from-checkpoint",
    "rotation": "degrees rotate",
    "run-id": "name run-name experiment experiment-name exp exp-name project-name",
    "seed": "random-seed manual-seed random-state",
    "strategy": "freeze freeze-layers freeze-backbone unfreeze finetune fine-tune trainable-layers",
    "sync-batch-norm": "sync-bn sync-batchnorm dist-bn",
    "test-share": "test-split",
    "test-size": "eval-size val-size val-crop-size",
    "trivial-augment": "trivialaugment auto-augment",
    "val-share": "val-split validation-split",
    "verbose": "debug",
    "accelerator": "device use-cuda cuda cpu",
    "tracker": "report-to logger loggers trackers",
    "wandb": "use-wandb log-wandb",
    "wandb-entity": "entity team",
    "wandb-project": "project",
    "warmup": "warmup-ratio warmup-steps warmup-epochs",
    "weight-decay": "wd decay l2",
    "weights": "pretrained pretrained-weights",
}
SYNONYMS = {word: name for name, words in _WORDS.items() for word in words.split()}
"""Other tools' option names, without the leading dashes, and ours."""

WITHOUT = {
    **dict.fromkeys(
        ("workers", "num-workers", "j", "dataloader-num-workers"), "images are decoded once, without workers"
    ),
    **dict.fromkeys(("num-classes", "classes", "num-labels"), "the folders of the data set are the classes"),
    **dict.fromkeys(("momentum", "sgd-momentum"), "that of --optimiser sgd is 0.9, and AdamW has none"),
    **dict.fromkeys(("scheduler", "sched", "lr-scheduler"), "the learning rate always rises, then follows a cosine"),
}
"""Options of other tools that have no counterpart here, and why."""

COMMANDS = {
    **dict.fromkeys(("a", "traina", "scratch"), "parta"),
    **dict.fromkeys(("b", "trainb", "finetune", "fine-tune"), "partb"),
    **dict.fromkeys(("evaluate", "eval", "validate"), "test"),
    **dict.fromkeys(("pull", "download", "decode", "fetch", "data"), "prepare"),
    **dict.fromkeys(("check", "doctor", "verify"), "preflight"),
    **dict.fromkeys(("ls", "list", "ps", "info", "show"), "status"),
    **dict.fromkeys(("benchmark", "profile", "perf"), "bench"),
    **dict.fromkeys(("diff", "versus", "vs", "table", "leaderboard"), "compare"),
    **dict.fromkeys(("deploy", "launch", "k8s", "batch", "sagemaker"), "submit"),
}
"""Other words for our commands."""

_CHOICES = {
    **dict.fromkeys(("gpu", "nvidia", "cuda:0"), "cuda"),
    **dict.fromkeys(("16", "16-mixed", "16-true", "half", "float16", "fp16-mixed", "amp"), "fp16"),
    **dict.fromkeys(("bf16-mixed", "bf16-true", "bfloat16"), "bf16"),
    **dict.fromkeys(("32", "32-true", "float32"), "fp32"),
    **dict.fromkeys(("swish",), "silu"),
    **dict.fromkeys(("avg", "average", "global", "mean"), "gap"),
    **dict.fromkeys(("disabled", "false", "none", "no"), "off"),
    **dict.fromkeys(("all", "finetune", "fine-tune"), "full"),
    **dict.fromkeys(("lpft", "probe"), "lp-ft"),
    **dict.fromkeys(("linear", "frozen", "freeze", "feature-extraction"), "head"),
    **dict.fromkeys(("kubernetes", "eks", "gke", "aks"), "k8s"),
    **dict.fromkeys(("aws-batch", "aws"), "batch"),
    **dict.fromkeys(("human", "plain"), "text"),
    **dict.fromkeys(("yaml", "jsonl", "ndjson", "logfmt", "structured", "machine"), "json"),
}
"""Other words for values that have to be one of a few."""


def option(word: str, known: Mapping[str, str]) -> str | None:
    """What `word` (an option, a setting or a variable without its prefix) most likely means.

    `known` maps the names of the options ("batch-size") to what is returned for them, such as the flag.
    """
    return _synonym(word, known) or known.get(_nearest(_plain(word), known) or "")


def command(word: str, known: Collection[str]) -> str | None:
    """The command that `word` most likely means."""
    name = _plain(word)
    return found if (found := COMMANDS.get(name)) in known else _nearest(name, known)


def choice(word: str, choices: Collection[str]) -> str | None:
    """The one of a few values that `word` most likely means."""
    name = _plain(word)
    return found if (found := _CHOICES.get(name)) in choices else _nearest(name, choices)


def ending(found: str | None) -> str:
    """The end of a sentence that says what does not exist."""
    return f"; did you mean {found}?" if found else "."


def no_option(flag: str, command: str, flags: Collection[str], elsewhere: Mapping[str, Collection[str]]) -> str:
    """The sentence about an option that `command` does not have, given those that it and the other commands have."""
    known = {each.lstrip("-"): each for each in flags}
    if found := _synonym(flag, known):
        return f"There is no option {flag}; did you mean {found}?"
    if reason := WITHOUT.get(_plain(flag)):
        return f"There is no option {flag}, because {reason}: leave it out."
    if sentence := _other_commands_option(flag, command, elsewhere):
        return sentence
    if found := option(flag, known):
        return f"There is no option {flag}; did you mean {found}?"
    meant = option(flag, {each.lstrip("-"): each for theirs in elsewhere.values() for each in theirs})
    if meant and (sentence := _other_commands_option(meant, command, elsewhere)):
        return f"There is no option {flag}, and {sentence}"
    return f"There is no option {flag}: see `{command} --help`."


def _other_commands_option(flag: str, command: str, elsewhere: Mapping[str, Collection[str]]) -> str | None:
    """The sentence about an option that only other commands have, None if none has it."""
    others = [name for name, theirs in elsewhere.items() if name != command and flag in theirs]
    if others and command == "submit":
        return f"{flag} is an option of the job's command: write it after --, as in `-- parta {flag} ...`."
    return f"{flag} is an option of {' and '.join(others[:2])}, not of {command}: leave it out." if others else None


def option_as_value(flag: str, value: str) -> str:
    """The sentence about an option that is in the place of another one's value."""
    return f"{flag} needs a value, and got the option {value}."


def one_value_too_many(flag: str, values: Sequence[str], takes: str, off: str = "") -> str:
    """The sentence about words that follow an option's value.

    `takes` is the type of the option's value, empty for a switch, whose opposite is `off`.
    """
    if not takes:
        other = f" or {off}" if off else ""
        return f"{flag} takes no value, and {values[0]!r} follows it: write {flag}{other} alone."
    if takes == "LIST":
        return f"{flag} takes its values with commas between them: write {flag} {','.join(values)}."
    return f"{flag} takes one value, and {values[1]!r} follows {values[0]!r}: leave it out, or name its option."


def no_argument(word: str, command: str) -> str:
    """The sentence about a word that belongs to no option, for a command that takes options only."""
    example = f"write --data {word} for a data set, or " if "/" in word or "." in word else ""
    return f"{command} takes only options, and {word!r} is not one: {example}see `{command} --help`."


def _synonym(word: str, known: Mapping[str, str]) -> str | None:
    name = _plain(word)
    return known.get(name) or known.get(SYNONYMS.get(name, ""))


def _plain(word: str) -> str:
    return word.strip().lstrip("-").lower().replace("_", "-")


def _nearest(name: str, known: Collection[str]) -> str | None:
    """The known name with the same letters, the only one that begins so, or the most similar one."""
    squeezed = name.replace("-", "")
    for each in known:
        if each.lower().replace("-", "") == squeezed:
            return each
    longer = [each for each in known if len(name) > 2 and each.startswith(name)]
    if len(longer) == 1:
        return longer[0]
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=_CUTOFF)), None)

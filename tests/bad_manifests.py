"""Manifests with one mistake each, and the whole of what is reported: the place, what is wrong, and the fix."""

from __future__ import annotations

import textwrap

GOOD = """\
apiVersion: trainwright.dev/v1alpha1
kind: TrainingJob
metadata:
  name: gpt-corpus
spec:
  model: {source: gpt2, fromConfig: {n_layer: 2}}
  dataset: {source: /data/*.txt}
  task: CausalLM
  trainingArguments:
    maxSteps: 200
  output: {persistentVolumeClaim: {claimName: runs}}
"""

SCRIPT = """\
apiVersion: trainwright.dev/v1alpha1
kind: TrainingJob
metadata: {name: digits}
spec:
  script: {path: /src/train.py}
  output: {emptyDir: {}}
"""


def argument(line: str) -> str:
    """The manifest with one more training argument, on line 11."""
    return GOOD.replace("    maxSteps: 200\n", f"    maxSteps: 200\n    {line}\n")


def field(line: str) -> str:
    """The manifest with one more field of spec, on line 12 (or more lines, from there on)."""
    return GOOD + textwrap.indent(line, "  ") + "\n"


def best(task: str, metric: str, argument_too: str = "seed: 1") -> str:
    """The manifest of another task whose best model is chosen by ``metric``, on line 13."""
    chosen = argument(f"{argument_too}\n    evalStrategy: steps\n    metricForBestModel: {metric}")
    return chosen.replace("CausalLM", task).replace("*.txt}", "*.txt, evalSource: /data/held}")


ARGUMENTS = "spec.trainingArguments"

# name -> (manifest, the lines that are said)
CASES: dict[str, tuple[str, list[str]]] = {
    "a bare no": (
        argument("evalStrategy: no"),
        [
            f"job.yaml:11: {ARGUMENTS}.evalStrategy: must be one of no, steps, epoch, not the boolean false; "
            'YAML reads a bare no as a boolean, so quote it: evalStrategy: "no"'
        ],
    ),
    "a choice that does not exist": (
        argument("evalStrategy: step"),
        [f'job.yaml:11: {ARGUMENTS}.evalStrategy: "step" is not one of no, steps, epoch; did you mean steps?'],
    ),
    "a misspelt field": (
        argument("learningrte: 1e-3"),
        [f"job.yaml:11: {ARGUMENTS}.learningrte: is not a field; did you mean learningRate?"],
    ),
    "a field in snake_case": (
        argument("learning_rate: 1e-3"),
        [f"job.yaml:11: {ARGUMENTS}.learning_rate: is not a field; did you mean learningRate?"],
    ),
    "a field in the wrong place": (
        field("learningRate: 1e-3"),
        [f"job.yaml:12: spec.learningRate: is not a field here; it belongs to {ARGUMENTS}"],
    ),
    "an argument of an older transformers": (
        argument("evaluationStrategy: steps"),
        [f"job.yaml:11: {ARGUMENTS}.evaluationStrategy: is not a field; use evalStrategy"],
    ),
    "an argument that is the operator's": (
        argument("outputDir: /tmp/run"),
        [f"job.yaml:11: {ARGUMENTS}.outputDir: is not a field: the operator mounts spec.output and sets it; remove it"],
    ),
    "text for a number": (
        argument('learningRate: "3e-4"'),
        [f'job.yaml:11: {ARGUMENTS}.learningRate: must be a number, not the text "3e-4"; remove the quotes'],
    ),
    "half a step": (
        GOOD.replace("maxSteps: 200", "maxSteps: 0.5"),
        [f"job.yaml:10: {ARGUMENTS}.maxSteps: must be a whole number, not 0.5"],
    ),
    "negative steps": (
        GOOD.replace("maxSteps: 200", "maxSteps: -200"),
        [f"job.yaml:10: {ARGUMENTS}.maxSteps: must be at least -1, not -200"],
    ),
    "a batch of nothing": (
        argument("perDeviceTrainBatchSize: 0"),
        [f"job.yaml:11: {ARGUMENTS}.perDeviceTrainBatchSize: must be at least 1, not 0"],
    ),
    "text for true": (
        argument('bf16: "true"'),
        [f'job.yaml:11: {ARGUMENTS}.bf16: must be true or false, not the text "true"; remove the quotes'],
    ),
    "one label name without a list": (
        argument("labelNames: labels"),
        [f'job.yaml:11: {ARGUMENTS}.labelNames: must be a list, not the text "labels"; write labelNames: ["labels"]'],
    ),
    "two number formats": (
        argument("bf16: true\n    fp16: true"),
        [f"job.yaml:12: {ARGUMENTS}.fp16: fp16 and bf16 exclude each other; keep bf16 where the hardware has it"],
    ),
    "the best of no evaluations": (
        argument("loadBestModelAtEnd: true"),
        [
            f"job.yaml:11: {ARGUMENTS}.loadBestModelAtEnd: loadBestModelAtEnd needs evaluations; "
            'set evalStrategy to "steps" or "epoch"'
        ],
    ),
    "a configuration that contradicts the arguments": (
        argument("deepspeed: {zero_optimization: {stage: 3}, gradient_clipping: 0.5}"),
        [
            f"job.yaml:11: {ARGUMENTS}.deepspeed: gradient_clipping is 0.5 here, and maxGradNorm is 1.0; set both "
            'alike, or the first to "auto"'
        ],
    ),
    "a key that DeepSpeed does not have": (
        argument("deepspeed: {zero_optimization: {stage: 3}, gradient_cliping: 0.5}"),
        [
            f"job.yaml:11: {ARGUMENTS}.deepspeed: gradient_cliping is not a key that is supported here; did you mean "
            "gradient_clipping?"
        ],
    ),
    "a stage that ZeRO does not have": (
        argument("deepspeed: {zero_optimization: {stage: 4}}"),
        [f"job.yaml:11: {ARGUMENTS}.deepspeed: zero_optimization.stage: must be 1, 2 or 3, not 4"],
    ),
    "a token in the open": (
        argument("hubToken: hf_secret"),
        [f'job.yaml:11: {ARGUMENTS}.hubToken: must be an object, not the text "hf_secret"'],
    ),
    "an empty item": (
        argument("labelNames: [labels, ~]"),
        [f"job.yaml:11: {ARGUMENTS}.labelNames[1]: is empty; give a value, or remove the line"],
    ),
    "an empty value where one is needed": (
        GOOD.replace("{persistentVolumeClaim: {claimName: runs}}", ""),
        [
            "job.yaml:11: spec.output: is missing: say where to store the model, such as "
            "output: {persistentVolumeClaim: {claimName: runs}}"
        ],
    ),
    "an optimizer that does not exist": (
        argument("optim: adamw"),
        [
            f'job.yaml:11: {ARGUMENTS}.optim: "adamw" is not a choice; did you mean adamw_torch? '
            "(`trainwright explain` lists all)"
        ],
    ),
    "a model by its name alone": (
        GOOD.replace("{source: gpt2, fromConfig: {n_layer: 2}}", "gpt2"),
        ['job.yaml:6: spec.model: must be an object, not the text "gpt2"; write model: {source: gpt2}'],
    ),
    "an object as text": (
        argument("lrSchedulerKwargs: '{\"power\": 2}'"),
        [
            f"job.yaml:11: {ARGUMENTS}.lrSchedulerKwargs: must be an object, "
            'not the text "{\\"power\\": 2}"; write the object itself, without quotes'
        ],
    ),
    "a key twice": (
        argument("maxSteps: 300"),
        [f"job.yaml:11: {ARGUMENTS}.maxSteps: appears twice; keep one of them"],
    ),
    "a name too long": (
        GOOD.replace("gpt-corpus", "a" * 41),
        ["job.yaml:4: metadata.name: is 41 characters long, at most 40 are allowed; shorten it"],
    ),
    "a name with capitals": (
        GOOD.replace("gpt-corpus", "GPT_corpus"),
        [
            "job.yaml:4: metadata.name: \"GPT_corpus\" is not valid; use lower-case letters, digits and '-', "
            "beginning with a letter and ending with a letter or digit"
        ],
    ),
    "no output": (
        GOOD.replace("  output: {persistentVolumeClaim: {claimName: runs}}\n", ""),
        [
            "job.yaml:5: spec.output: is missing: say where to store the model, such as "
            "output: {persistentVolumeClaim: {claimName: runs}}"
        ],
    ),
    "two outputs": (
        GOOD.replace("{persistentVolumeClaim: {claimName: runs}}", "{emptyDir: {}, hostPath: {path: /runs}}"),
        ["job.yaml:11: spec.output: give exactly one of persistentVolumeClaim, hostPath, emptyDir"],
    ),
    "an output that leaves its volume": (
        GOOD.replace("{claimName: runs}}", "{claimName: runs}, subPath: ../other}"),
        [
            'job.yaml:11: spec.output.subPath: "../other" is not valid; write a path relative to the volume, '
            "without '..', such as team-a/gpt"
        ],
    ),
    "neither a task nor a script": (
        GOOD.replace("  task: CausalLM\n", ""),
        ["job.yaml:5: spec.task: is missing: a job needs model, dataset and task, or a script of your own"],
    ),
    "a script beside a model": (
        SCRIPT + "  model: {source: gpt2}\n",
        ["job.yaml:5: spec.script: a script brings its own model and data; remove script, or model, dataset and task"],
    ),
    "two programs": (
        SCRIPT.replace("{path: /src/train.py}", '{path: /src/train.py, inline: "print(1)"}'),
        ["job.yaml:5: spec.script: give exactly one of inline, configMap, path"],
    ),
    "a streamed dataset without an end": (
        GOOD.replace("*.txt}", "*.txt, streaming: true}").replace("maxSteps: 200", "numTrainEpochs: 2"),
        ["job.yaml:7: spec.dataset.streaming: a streamed dataset has no known length; set trainingArguments.maxSteps"],
    ),
    "a metric that no evaluation of a classifier gives": (
        best("SequenceClassification", "f1"),
        [
            "job.yaml:13: spec.trainingArguments.metricForBestModel: no evaluation gives f1; choose one of loss, "
            "accuracy, f1_macro"
        ],
    ),
    "a metric of generated text where none is generated": (
        best("Seq2SeqLM", "rouge_l"),
        ["job.yaml:13: spec.trainingArguments.metricForBestModel: no evaluation gives rouge_l; choose one of loss"],
    ),
    "a metric of classes for text that is generated": (
        best("Seq2SeqLM", "eval_accuracy", "predictWithGenerate: true"),
        [
            "job.yaml:13: spec.trainingArguments.metricForBestModel: no evaluation gives eval_accuracy; "
            "choose one of loss, exact_match, rouge_l"
        ],
    ),
    "perplexity, which no evaluation gives while training": (
        best("CausalLM", "perplexity"),
        ["job.yaml:13: spec.trainingArguments.metricForBestModel: no evaluation gives perplexity; choose one of loss"],
    ),
    "all rows held out": (
        GOOD.replace("*.txt}", "*.txt, validationFraction: 1}"),
        ["job.yaml:7: spec.dataset.validationFraction: must be below 1, not 1"],
    ),
    "a column for a role that does not exist": (
        GOOD.replace("*.txt}", "*.txt, columns: {labels: y}}"),
        ["job.yaml:7: spec.dataset.columns.labels: is not a field; did you mean label?"],
    ),
    "a sample from a classifier": (
        field('sample: {prompts: ["Once"]}').replace("CausalLM", "SequenceClassification"),
        ["job.yaml:12: spec.sample: only a model that generates text can write a sample"],
    ),
    "a number for a variable": (
        field("podTemplate: {env: [{name: THREADS, value: 4}]}"),
        ['job.yaml:12: spec.podTemplate.env[0].value: must be text, not 4; quote it: "4"'],
    ),
    "a variable twice": (
        field('podTemplate:\n  env:\n  - {name: A, value: "1"}\n  - {name: A, value: "2"}'),
        ['job.yaml:15: spec.podTemplate.env[1]: name "A" appears twice in the list; keep one of them'],
    ),
    "a variable that is the operator's": (
        field('podTemplate: {env: [{name: PET_NNODES, value: "1"}]}'),
        [
            "job.yaml:12: spec.podTemplate.env[0].name: is set by the operator "
            "(PET_*, TRAINWRIGHT_*, KUBEFLOW_TRAINER_SERVER_*); use another name"
        ],
    ),
    "a mount without its volume": (
        field("podTemplate: {volumeMounts: [{name: corpus, mountPath: /data}]}"),
        [
            "job.yaml:12: spec.podTemplate.volumeMounts: every mount must name one of podTemplate.volumes; "
            "add the volume"
        ],
    ),
    "a quantity that is none": (
        field("podTemplate: {resources: {limits: {memory: 16 GB}}}"),
        [
            'job.yaml:12: spec.podTemplate.resources.limits.memory: "16 GB" is not valid; '
            "write a quantity such as 4, 500m or 16Gi"
        ],
    ),
    "a label that is none": (
        field("podTemplate: {metadata: {labels: {my team: a}}}"),
        [
            "job.yaml:12: spec.podTemplate.metadata.labels: a key is a name of at most 63 letters, digits, '-', '_' "
            "and '.', optionally with a domain and '/' before it: team, or example.com/team"
        ],
    ),
    "a label that is the operator's": (
        field('podTemplate: {metadata: {labels: {trainwright.dev/attempt: "7"}}}'),
        [
            "job.yaml:12: spec.podTemplate.metadata.labels: labels and annotations of trainwright.dev and "
            "app.kubernetes.io/managed-by are reserved for the operator; use other keys"
        ],
    ),
    "a node label that is none": (
        field('podTemplate: {nodeSelector: {"/zone": a}}'),
        [
            "job.yaml:12: spec.podTemplate.nodeSelector: a key is a name of at most 63 letters, digits, '-', '_' and "
            "'.', optionally with a domain and '/' before it: team, or example.com/team"
        ],
    ),
    "a policy for anomalies that does not exist": (
        field("onAnomaly: skip"),
        ['job.yaml:12: spec.onAnomaly: "skip" is not one of Ignore, Skip, Rollback; did you mean Skip?'],
    ),
    "a factor below 1": (
        field("onAnomaly: Skip\nanomalyFactor: 0.5"),
        ["job.yaml:13: spec.anomalyFactor: must be 0 (only what is not finite), or above 1"],
    ),
    "a factor for anomalies that are ignored": (
        field("anomalyFactor: 5"),
        [
            "job.yaml:12: spec.anomalyFactor: has no effect while anomalies are ignored; set onAnomaly: Skip or "
            "onAnomaly: Rollback, or remove it"
        ],
    ),
    "a rollback without checkpoints": (
        argument('saveStrategy: "no"').replace("  output:", "  onAnomaly: Rollback\n  output:"),
        [
            "job.yaml:12: spec.onAnomaly: Rollback needs checkpoints with the optimizer; remove saveStrategy: 'no' and "
            "saveOnlyModel, or choose Skip"
        ],
    ),
    "anomalies under DeepSpeed": (
        argument("deepspeed: {zero_optimization: {stage: 2}}").replace("  output:", "  onAnomaly: Skip\n  output:"),
        [
            "job.yaml:12: spec.onAnomaly: DeepSpeed's engine clips and steps in one call, so no step can be left out; "
            "remove onAnomaly, or shard with fsdp"
        ],
    ),
    "a preflight of no time": (
        field("preflight: {timeoutSeconds: 1}"),
        ["job.yaml:12: spec.preflight.timeoutSeconds: must be at least 10, not 1"],
    ),
    "a preflight that allows less than the median": (
        field("preflight: {maxSlowdown: 0.9}"),
        ["job.yaml:12: spec.preflight.maxSlowdown: must be 0 (any), or above 1"],
    ),
    "a check of a preflight that does not exist": (
        field("preflight: {maxSlowDown: 2}"),
        ["job.yaml:12: spec.preflight.maxSlowDown: is not a field; did you mean maxSlowdown?"],
    ),
    "a version that does not exist": (
        GOOD.replace("v1alpha1", "v1"),
        ['job.yaml:1: apiVersion: must be trainwright.dev/v1alpha1, not "trainwright.dev/v1"'],
    ),
    "a kind that does not exist": (
        GOOD.replace("kind: TrainingJob", "kind: TrainJob"),
        ["job.yaml:2: kind: is 'TrainJob', not one of TrainingJob, AcceleratorPool; did you mean TrainingJob?"],
    ),
    "no spec": (
        "".join(GOOD.splitlines(keepends=True)[:4]),
        ["job.yaml:1: spec: is missing; give spec: {...}"],
    ),
    "a tab": (
        GOOD.replace("    maxSteps", "\tmaxSteps"),
        [
            "job.yaml:10:1: is not YAML: found character that cannot start any token; "
            "indent with spaces, not tabs, and quote text that begins with @, % or a backquote"
        ],
    ),
    "a pool without a vendor": (
        "apiVersion: trainwright.dev/v1alpha1\nkind: AcceleratorPool\nmetadata: {name: h100}\nspec: {perNode: 8}\n",
        ["job.yaml:4: spec.vendor: is missing: give the accelerators of the nodes: cpu, nvidia, amd or tpu"],
    ),
    "a TPU pool without its topology": (
        "apiVersion: trainwright.dev/v1alpha1\nkind: AcceleratorPool\nmetadata: {name: v6e}\n"
        "spec: {vendor: tpu, chipsPerHost: 4}\n",
        [
            "job.yaml:4: spec.topology: is missing: a tpu pool needs the topology and chipsPerHost "
            "that the node pool was created with"
        ],
    ),
}

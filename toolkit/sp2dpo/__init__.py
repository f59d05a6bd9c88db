"""DPO with a separate beta for every preference pair.

This is the public API. It annotates pairs, turns annotations into betas, audits them, builds,
verifies and publishes the data set, and evaluates students. Names are imported when they are first
used, so that importing the package is fast. The trainer is in `sp2dpo.training`.
"""

from importlib import import_module

TYPE_CHECKING = False  # typing's own would double the time that this import takes
if TYPE_CHECKING:
    from sp2dpo.annotation.reply_files import import_replies
    from sp2dpo.annotation.request_files import export_requests
    from sp2dpo.annotation.run import annotate_pairs
    from sp2dpo.annotation.score_replies import import_scores
    from sp2dpo.betas.arms import Arm, compute_betas, load_arm, parse_arm
    from sp2dpo.betas.compute import schedule_store
    from sp2dpo.betas.explain import explain_pair
    from sp2dpo.betas.file import BetaTable, read_betas, write_betas
    from sp2dpo.betas.label_slope import LabelSlope, fit_slope
    from sp2dpo.betas.schedule import Schedule, load_schedule, parse_schedule
    from sp2dpo.betas.scores import Scores, read_scores
    from sp2dpo.dataset.build import build_dataset
    from sp2dpo.dataset.load import load_pairs
    from sp2dpo.dataset.publish import PublishOptions, publish_dataset
    from sp2dpo.dataset.resample import resample_dataset
    from sp2dpo.dataset.space import deploy_space
    from sp2dpo.dataset.verify import verify_dataset
    from sp2dpo.diagnostics.ablation import compare_store_estimators
    from sp2dpo.diagnostics.agreement import wilson_interval
    from sp2dpo.diagnostics.audit import audit_store
    from sp2dpo.diagnostics.comparison import compare_betas
    from sp2dpo.diagnostics.gold_scores import export_gold
    from sp2dpo.diagnostics.panel_agreement import measure_store_agreement
    from sp2dpo.evaluation.models import load_judge, load_student
    from sp2dpo.evaluation.outputs import generate_outputs
    from sp2dpo.evaluation.temperatures import sweep_temperatures
    from sp2dpo.evaluation.verdicts import judge_outputs
    from sp2dpo.evaluation.winrates import compare_students
    from sp2dpo.inference.endpoint import Endpoint
    from sp2dpo.pairs.pair import Pair
    from sp2dpo.pairs.source_scores import ScoreColumns
    from sp2dpo.pairs.sources import open_source, read_rows
    from sp2dpo.panel.panel import Panel, load_panel
    from sp2dpo.panel.rubric import Rubric, load_rubric
    from sp2dpo.report.page import render_page, write_report
    from sp2dpo.report.pilot import run_pilot
    from sp2dpo.report.report import build_report
    from sp2dpo.report.status import collect_status
    from sp2dpo.store.annotations import AnnotationTable, build_annotation_table
    from sp2dpo.store.merge import merge_stores
    from sp2dpo.store.reread import reread_replies
    from sp2dpo.store.store import Store

__version__ = "0.1.0"

_MODULES = {
    "AnnotationTable": "sp2dpo.store.annotations",
    "Arm": "sp2dpo.betas.arms",
    "BetaTable": "sp2dpo.betas.file",
    "Endpoint": "sp2dpo.inference.endpoint",
    "LabelSlope": "sp2dpo.betas.label_slope",
    "Pair": "sp2dpo.pairs.pair",
    "Panel": "sp2dpo.panel.panel",
    "PublishOptions": "sp2dpo.dataset.publish",
    "Rubric": "sp2dpo.panel.rubric",
    "Schedule": "sp2dpo.betas.schedule",
    "ScoreColumns": "sp2dpo.pairs.source_scores",
    "Scores": "sp2dpo.betas.scores",
    "Store": "sp2dpo.store.store",
    "annotate_pairs": "sp2dpo.annotation.run",
    "audit_store": "sp2dpo.diagnostics.audit",
    "build_annotation_table": "sp2dpo.store.annotations",
    "build_dataset": "sp2dpo.dataset.build",
    "build_report": "sp2dpo.report.report",
    "collect_status": "sp2dpo.report.status",
    "compare_betas": "sp2dpo.diagnostics.comparison",
    "compare_store_estimators": "sp2dpo.diagnostics.ablation",
    "compare_students": "sp2dpo.evaluation.winrates",
    "compute_betas": "sp2dpo.betas.arms",
    "deploy_space": "sp2dpo.dataset.space",
    "explain_pair": "sp2dpo.betas.explain",
    "export_gold": "sp2dpo.diagnostics.gold_scores",
    "export_requests": "sp2dpo.annotation.request_files",
    "fit_slope": "sp2dpo.betas.label_slope",
    "generate_outputs": "sp2dpo.evaluation.outputs",
    "import_replies": "sp2dpo.annotation.reply_files",
    "import_scores": "sp2dpo.annotation.score_replies",
    "judge_outputs": "sp2dpo.evaluation.verdicts",
    "load_arm": "sp2dpo.betas.arms",
    "load_judge": "sp2dpo.evaluation.models",
    "load_pairs": "sp2dpo.dataset.load",
    "load_panel": "sp2dpo.panel.panel",
    "load_rubric": "sp2dpo.panel.rubric",
    "load_schedule": "sp2dpo.betas.schedule",
    "load_student": "sp2dpo.evaluation.models",
    "measure_store_agreement": "sp2dpo.diagnostics.panel_agreement",
    "merge_stores": "sp2dpo.store.merge",
    "open_source": "sp2dpo.pairs.sources",
    "parse_arm": "sp2dpo.betas.arms",
    "parse_schedule": "sp2dpo.betas.schedule",
    "publish_dataset": "sp2dpo.dataset.publish",
    "read_betas": "sp2dpo.betas.file",
    "read_rows": "sp2dpo.pairs.sources",
    "read_scores": "sp2dpo.betas.scores",
    "render_page": "sp2dpo.report.page",
    "reread_replies": "sp2dpo.store.reread",
    "resample_dataset": "sp2dpo.dataset.resample",
    "run_pilot": "sp2dpo.report.pilot",
    "schedule_store": "sp2dpo.betas.compute",
    "sweep_temperatures": "sp2dpo.evaluation.temperatures",
    "verify_dataset": "sp2dpo.dataset.verify",
    "wilson_interval": "sp2dpo.diagnostics.agreement",
    "write_betas": "sp2dpo.betas.file",
    "write_report": "sp2dpo.report.page",
}

__all__ = [
    "AnnotationTable",
    "Arm",
    "BetaTable",
    "Endpoint",
    "LabelSlope",
    "Pair",
    "Panel",
    "PublishOptions",
    "Rubric",
    "Schedule",
    "ScoreColumns",
    "Scores",
    "Store",
    "__version__",
    "annotate_pairs",
    "audit_store",
    "build_annotation_table",
    "build_dataset",
    "build_report",
    "collect_status",
    "compare_betas",
    "compare_store_estimators",
    "compare_students",
    "compute_betas",
    "deploy_space",
    "explain_pair",
    "export_gold",
    "export_requests",
    "fit_slope",
    "generate_outputs",
    "import_replies",
    "import_scores",
    "judge_outputs",
    "load_arm",
    "load_judge",
    "load_pairs",
    "load_panel",
    "load_rubric",
    "load_schedule",
    "load_student",
    "measure_store_agreement",
    "merge_stores",
    "open_source",
    "parse_arm",
    "parse_schedule",
    "publish_dataset",
    "read_betas",
    "read_rows",
    "read_scores",
    "render_page",
    "reread_replies",
    "resample_dataset",
    "run_pilot",
    "schedule_store",
    "sweep_temperatures",
    "verify_dataset",
    "wilson_interval",
    "write_betas",
    "write_report",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value  # the next access does not call this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

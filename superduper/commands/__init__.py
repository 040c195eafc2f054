"""Everything that can be asked of Superduper: frozen commands, each with its place in the REST API.

A facade builds a command and a transport sends it: to the service in this process, or over HTTP.
A command is checked here, once; behind it values are trusted. Values inside commands and answers
are plain BSON values (rich ones are encoded before by `superduper.fields.codec`).
"""

from superduper.command import Command, OnCollection
from superduper.commands import components, documents, imputations, jobs, predictions
from superduper.commands.components import (
    DeleteComponent,
    ListComponents,
    RegisterComponent,
    SetForm,
    ShowComponent,
    ShowForm,
)
from superduper.commands.documents import (
    CountDocuments,
    DeleteDocuments,
    ExplainValue,
    FindDocuments,
    InsertDocuments,
    ListCollections,
    ReplaceDocument,
    UpdateDocuments,
)
from superduper.commands.imputations import (
    CountStates,
    CreateImputation,
    CreateWatcher,
    DeleteImputation,
    ListCorrections,
    ListFailures,
    ListImputations,
    ListStates,
    ListVersions,
    Named,
    OnImputation,
    PauseImputation,
    PreviewImputation,
    PromoteVersion,
    RedoVersion,
    RefitImputation,
    ResumeImputation,
    RetryFailures,
    RevertVersion,
    RollbackImputation,
    ShowHistory,
    ShowImputation,
)
from superduper.commands.jobs import (
    CancelJob,
    Highscores,
    ListJobs,
    ListRuns,
    ShowJob,
    ShowRun,
    ShowStatus,
)
from superduper.commands.predictions import (
    Canary,
    ExplainPrediction,
    ListOutputs,
    OnEither,
    OnPredictor,
    Predict,
    PredictDocuments,
    PredictImputation,
    PredictLater,
    SetTraffic,
    Shadow,
    ShowTraffic,
    StreamPrediction,
)
from superduper.commands.transport import (
    Transport,
)

__all__ = [
    "Canary",
    "CancelJob",
    "CountDocuments",
    "CountStates",
    "CreateImputation",
    "CreateWatcher",
    "DeleteComponent",
    "DeleteDocuments",
    "DeleteImputation",
    "ExplainPrediction",
    "ExplainValue",
    "FindDocuments",
    "Highscores",
    "InsertDocuments",
    "ListCollections",
    "ListComponents",
    "ListCorrections",
    "ListFailures",
    "ListImputations",
    "ListJobs",
    "ListOutputs",
    "ListRuns",
    "ListStates",
    "ListVersions",
    "Named",
    "OnCollection",
    "OnEither",
    "OnImputation",
    "OnPredictor",
    "PauseImputation",
    "Predict",
    "PredictDocuments",
    "PredictImputation",
    "PredictLater",
    "PreviewImputation",
    "PromoteVersion",
    "RedoVersion",
    "RefitImputation",
    "RegisterComponent",
    "ReplaceDocument",
    "ResumeImputation",
    "RetryFailures",
    "RevertVersion",
    "RollbackImputation",
    "SetForm",
    "SetTraffic",
    "Shadow",
    "ShowComponent",
    "ShowForm",
    "ShowHistory",
    "ShowImputation",
    "ShowJob",
    "ShowRun",
    "ShowStatus",
    "Transport",
    "ShowTraffic",
    "StreamPrediction",
    "UpdateDocuments",
    "all_commands",
]

MODULES = (documents, components, imputations, predictions, jobs)


def all_commands() -> list[type[Command]]:
    """Every command that has a route, module by module as they are written."""
    return [
        found
        for module in MODULES
        for found in vars(module).values()
        if isinstance(found, type)
        and issubclass(found, Command)
        and found.__module__ == module.__name__
        and "route" in vars(found)
    ]

"""The one implementation of every command, whichever transport brings it."""

from collections.abc import Callable, Generator
from typing import Any

from pymongo.database import Database

from superduper import commands
from superduper.command import Command
from superduper.handlers import (
    components,
    documents,
    forms,
    imputations,
    jobs,
    predictions,
    traffic,
)
from superduper.handlers.context import Context
from superduper.serving.model_hosts import ModelHosts
from superduper.store.mongo import database_errors

Handler = Callable[[Context, Any], Any]
AuthoredHandler = Callable[[Context, Any, str], Any]

HANDLERS: dict[type[Command], Handler] = {
    commands.ListCollections: documents.list_collections,
    commands.InsertDocuments: documents.insert,
    commands.FindDocuments: documents.find,
    commands.CountDocuments: documents.count,
    commands.UpdateDocuments: documents.update,
    commands.ReplaceDocument: documents.replace,
    commands.DeleteDocuments: documents.delete,
    commands.ListComponents: components.list_components,
    commands.ShowComponent: components.show,
    commands.DeleteComponent: components.delete,
    commands.ListImputations: imputations.list_imputations,
    commands.ShowImputation: imputations.show,
    commands.DeleteImputation: imputations.delete,
    commands.RefitImputation: imputations.refit,
    commands.RevertVersion: imputations.revert,
    commands.RedoVersion: imputations.redo,
    commands.PreviewImputation: imputations.preview_fills,
    commands.PauseImputation: imputations.pause,
    commands.ResumeImputation: imputations.resume,
    commands.RetryFailures: imputations.retry_failures,
    commands.ListFailures: imputations.list_failures,
    commands.ListCorrections: imputations.list_corrections,
    commands.ListVersions: imputations.versions,
    commands.ShowHistory: imputations.history,
    commands.CountStates: imputations.counts,
    commands.ListStates: imputations.list_states,
    commands.ExplainValue: imputations.explain,
    commands.Predict: predictions.predict,
    commands.PredictImputation: predictions.predict_imputation,
    commands.PredictDocuments: predictions.predict_documents,
    commands.ShowTraffic: traffic.show,
    commands.ShowForm: forms.show,
    commands.PredictLater: predictions.predict_later,
    commands.ListOutputs: predictions.outputs,
    commands.ExplainPrediction: predictions.explain,
    commands.ListJobs: jobs.list_jobs,
    commands.ShowJob: jobs.show,
    commands.CancelJob: jobs.cancel,
    commands.ListRuns: jobs.list_runs,
    commands.ShowRun: jobs.show_run,
    commands.Highscores: jobs.highscores,
    commands.ShowStatus: jobs.status,
}
AUTHORED: dict[type[Command], AuthoredHandler] = {
    commands.RegisterComponent: components.register,
    commands.SetTraffic: traffic.set_traffic,
    commands.SetForm: forms.set_form,
    commands.CreateImputation: imputations.create,
    commands.CreateWatcher: imputations.create_watcher,
    commands.PromoteVersion: imputations.promote,
    commands.RollbackImputation: imputations.rollback,
}


AUDITED = ("trainer", "admin")
SUBJECT = ("collection", "kind", "name", "version", "id")


def subject_of(command: Command) -> str:
    """The object that a command is about, in words."""
    found = {key: getattr(command, key, None) for key in SUBJECT}
    return " ".join(f"{key}={value}" for key, value in found.items() if value is not None)


class Service:
    """Answers commands about one database; safe to call from several threads."""

    def __init__(self, database: Database[Any], hosts: ModelHosts | None = None) -> None:
        """With `hosts`, models run there; else in processes of its own."""
        self.context = Context.of(database, hosts)

    def handle(self, command: Command, author: str) -> Any:
        """The answer to a command, as plain BSON values.

        `author` is who asks: noted with what is registered, declared and promoted, and in the audit
        log with whatever takes the role trainer or more.
        Raises the classes of `superduper.errors`; the database's own errors are translated.
        """
        if command.route.role not in AUDITED:
            return self._answer(command, author)
        return self.context.audit.around(
            lambda: self._answer(command, author),
            who=author,
            action=type(command).__name__,
            subject=subject_of(command),
        )

    def _answer(self, command: Command, author: str) -> Any:
        with database_errors():
            if type(command) in AUTHORED:
                return AUTHORED[type(command)](self.context, command, author)
            return HANDLERS[type(command)](self.context, command)

    def stream(
        self, command: commands.FindDocuments | commands.StreamPrediction
    ) -> Generator[dict[str, Any], None, None]:
        """The documents that match, or the pieces of a prediction, one after the other."""
        with database_errors():
            if isinstance(command, commands.StreamPrediction):
                yield from predictions.stream(self.context, command)
            else:
                yield from documents.stream(self.context, command)

    def close(self) -> None:
        """End the model hosts that were started, or the use of others' hosts."""
        self.context.hosts.close()

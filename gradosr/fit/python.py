"""`gradosr fit` for Python."""

import os
from dataclasses import replace
from typing import Any

from gradosr.archive.kinds import class_folders, source_at
from gradosr.bundle.manifest import check_new, read_manifest
from gradosr.config import FitJob, StoreFields
from gradosr.config.settings import validate_settings
from gradosr.fit.fitting import fit as fit_job
from gradosr.fit.fitting import record_job
from gradosr.fit.preflight import check_given
from gradosr.python.bundle import Bundle
from gradosr.run.console import Notes
from gradosr.store import Store


def fit(images: "str | os.PathLike[str] | None" = None, *, force: bool = False, **settings: Any) -> Bundle:
    """Fit a detector to a classifier, save the bundle, and return it ready to score.

    Settings are those of a fit config, with sections as dictionaries:

        gradosr.fit("photos/", classifier={"arch": "torchvision:resnet18", "weights": "w.pt"}, bundle="bundle/")

    `images`, a folder of class folders, tar or Parquet files, stands for `input`, and then all of them are held out
    unless the settings say otherwise: images that the classifier was not trained on. Class folders are the classes, in
    the order of their names, where none are named. Messages go to stderr. Raises ConfigError, InputError or
    ClassifierError, each in one line; `force` replaces a bundle, and accepts names of classes that look exchanged.
    """
    settings = {name: os.fspath(one) if isinstance(one, os.PathLike) else one for name, one in settings.items()}
    fields = validate_settings(
        StoreFields, {name: settings[name] for name in StoreFields.model_fields if name in settings}, "gradosr.fit"
    )
    store = Store(fields.store, fields.stores)
    if images is not None:
        source = source_at(os.fspath(images), store)
        settings = {"input": source, "held_out": 0.1 if settings.get("train") else 1} | settings
        classifier = dict(settings.get("classifier", {}))
        folders = class_folders(source["uri"], store) if source["kind"] == "images" else ()
        named = classifier.get("classes") or settings.get("known") or str(classifier.get("arch", "")).startswith("hf:")
        settings["classifier"] = classifier if named or not folders else classifier | {"classes": folders}
    job = validate_settings(FitJob, settings, "gradosr.fit")
    if not force:
        check_new(store, job.bundle, ", or replace it with force=True")
    check_given(job)
    record_job(store, job)
    with Notes() as notes:
        made = fit_job(job, notes, force=force)
        made.save(store, job.bundle)
    _, digest = read_manifest(store, job.bundle)
    return Bundle(replace(made, digest=digest), batch_size=job.batch_size, store=store, uri=job.bundle)

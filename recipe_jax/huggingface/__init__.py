"""Models as Hugging Face folders; checkpoints of the Llama family in and out, of BERT in."""

from recipe_jax.huggingface.bert_checkpoints import BertCheckpoint, load_bert_encoder
from recipe_jax.huggingface.folder_files import ModelFolderError
from recipe_jax.huggingface.language_models import (
    LanguageModel,
    load_language_model,
    save_language_model,
)
from recipe_jax.huggingface.llama2c import load_llama2c
from recipe_jax.huggingface.model_folder import ModuleFolder, load_module, save_module
from recipe_jax.huggingface.recipe_models import LoadedModel, load_model, save_model
from recipe_jax.huggingface.registry import MODELS, RECIPE_MODELS, from_json, make_module, to_json
from recipe_jax.huggingface.stored_parameters import Precision

__all__ = [
    "MODELS",
    "RECIPE_MODELS",
    "BertCheckpoint",
    "LanguageModel",
    "LoadedModel",
    "ModelFolderError",
    "ModuleFolder",
    "Precision",
    "from_json",
    "load_bert_encoder",
    "load_language_model",
    "load_llama2c",
    "load_model",
    "load_module",
    "make_module",
    "save_language_model",
    "save_model",
    "save_module",
    "to_json",
]

"""All contact with transformers and peft: loading (`load`), chat templates and token ids (`chat`), scores (`score`)."""

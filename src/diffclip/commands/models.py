"""`diffclip models`: the presets with their sizes."""


def models() -> None:
    """List the presets with their sizes."""
    from rich.table import Table

    from diffclip.models.clip import count_preset
    from diffclip.models.presets import list_models, model_config
    from diffclip.terminal import Terminal

    table = Table("preset", "image", "patch", "parameters", "of them λ and head norms", box=None, padding=(0, 2, 0, 0))
    for name in list_models():
        config = model_config(name)
        counts = count_preset(config)
        added = counts["lambda"] + counts["head_norm"]
        share = f"{added:,} ({added / counts['total']:.4%})" if added else ""
        table.add_row(name, str(config.image_size), str(config.patch_size), f"{counts['total']:,}", share)
    Terminal().print(table, highlight=False)

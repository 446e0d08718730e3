"""Settings that a file holds, as containers and systemd hand out secrets.

POWERMEAN_REDIS_URL_FILE=/run/secrets/redis_url stands for POWERMEAN_REDIS_URL with the file's text.
"""

import os
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from powermean.errors import PowermeanError

SUFFIX = "_FILE"


class SettingFileError(PowermeanError):
    """The file of a setting can't be used; the message names the variable."""


class FileSettings(BaseSettings):
    """Settings from environment variables, and from files that variables with `_FILE` at the end name.

    Making one raises SettingFileError for a file that can't be used.
    """

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """See BaseSettings."""
        return init_settings, _Files(settings_cls), env_settings


class _Files(PydanticBaseSettingsSource):
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        variable = f"{self.config.get('env_prefix', '')}{field_name}".upper()
        file = os.environ.get(f"{variable}{SUFFIX}")
        return (_read(variable, file) if file else None), field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {
            name: self.get_field_value(field, name)[0]
            for name, field in self.settings_cls.model_fields.items()
        }
        return {name: text for name, text in found.items() if text is not None}


def _read(variable: str, file: str) -> str:
    """The file's text, without the line break at its end."""
    if os.environ.get(variable):
        raise SettingFileError(f"{variable} and {variable}{SUFFIX} are both set: leave one out")
    try:
        text = Path(file).read_text().rstrip("\r\n")
    except OSError as error:
        raise SettingFileError(f"{variable}{SUFFIX}: {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingFileError(f"{variable}{SUFFIX}: {file} is not UTF-8 text") from error
    if not text:
        raise SettingFileError(f"{variable}{SUFFIX}: {file} is empty")
    return text

"""The keys that launchd reads, as a JSON schema written from launchd.plist(5) of macOS 14.

It has every key that an agent of a user may have, with types and allowed values; unknown keys are wrong, because
launchd ignores a misspelt key without a word. Not in it: keys that count for root's daemons only (UserName, GroupName,
RootDirectory, InitGroups), and what the page calls deprecated.
"""

from __future__ import annotations

from typing import Any

_BOOLEAN = {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "array", "items": {"type": "string"}}
# "launchd does not expand ~": a path that is not absolute is meant from / and is somebody's mistake.
_PATH = {"type": "string", "pattern": "^/"}
_BOOLEANS = {"type": "object", "additionalProperties": _BOOLEAN}
_SESSION = {"enum": ["Aqua", "LoginWindow", "Background", "StandardIO", "System"]}
_LIMITS = {
    "type": "object",
    "additionalProperties": False,
    "properties": dict.fromkeys(
        (
            *("Core", "CPU", "Data", "FileSize", "MemoryLock"),
            *("NumberOfFiles", "NumberOfProcesses", "ResidentSetSize", "Stack"),
        ),
        _COUNT,
    ),
}
_CALENDAR = {
    "type": "object",
    "additionalProperties": False,
    "properties": dict.fromkeys(("Minute", "Hour", "Day", "Weekday", "Month"), _COUNT),
}

LAUNCHD_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["Label"],
    "anyOf": [{"required": ["Program"]}, {"required": ["ProgramArguments"]}],
    "additionalProperties": False,
    "properties": {
        "Label": {"type": "string", "pattern": r"^[A-Za-z0-9.-]+$"},
        "Disabled": _BOOLEAN,
        "Program": _PATH,
        "BundleProgram": _TEXT,
        "ProgramArguments": {
            "type": "array",
            "minItems": 1,
            "prefixItems": [_PATH],
            "items": {"type": "string"},
        },
        "EnableGlobbing": _BOOLEAN,
        "EnableTransactions": _BOOLEAN,
        "EnablePressuredExit": _BOOLEAN,
        "KeepAlive": {
            "anyOf": [
                _BOOLEAN,
                {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "SuccessfulExit": _BOOLEAN,
                        "Crashed": _BOOLEAN,
                        "AfterInitialDemand": _BOOLEAN,
                        "PathState": _BOOLEANS,
                        "OtherJobEnabled": _BOOLEANS,
                    },
                },
            ]
        },
        "RunAtLoad": _BOOLEAN,
        "WorkingDirectory": _PATH,
        "EnvironmentVariables": {"type": "object", "additionalProperties": {"type": "string"}},
        "Umask": {"type": ["integer", "string"]},
        "TimeOut": _COUNT,
        "ExitTimeOut": _COUNT,
        "ThrottleInterval": _COUNT,
        "WatchPaths": _TEXTS,
        "QueueDirectories": _TEXTS,
        "StartOnMount": _BOOLEAN,
        "StartInterval": {"type": "integer", "minimum": 1},
        "StartCalendarInterval": {"anyOf": [_CALENDAR, {"type": "array", "items": _CALENDAR, "minItems": 1}]},
        "StandardInPath": _PATH,
        "StandardOutPath": _PATH,
        "StandardErrorPath": _PATH,
        "Debug": _BOOLEAN,
        "WaitForDebugger": _BOOLEAN,
        "SoftResourceLimits": _LIMITS,
        "HardResourceLimits": _LIMITS,
        "Nice": {"type": "integer", "minimum": -20, "maximum": 20},
        "ProcessType": {"enum": ["Background", "Standard", "Adaptive", "Interactive"]},
        "AbandonProcessGroup": _BOOLEAN,
        "LowPriorityIO": _BOOLEAN,
        "LowPriorityBackgroundIO": _BOOLEAN,
        "MaterializeDatalessFiles": _BOOLEAN,
        "LaunchOnlyOnce": _BOOLEAN,
        "MachServices": {"type": "object"},
        "LaunchEvents": {"type": "object"},
        "Sockets": {"type": "object"},
        "SessionCreate": _BOOLEAN,
        "LegacyTimers": _BOOLEAN,
        "AssociatedBundleIdentifiers": {"anyOf": [_TEXT, _TEXTS]},
        "LimitLoadToSessionType": {"anyOf": [_SESSION, {"type": "array", "items": _SESSION}]},
        "LimitLoadToHosts": _TEXTS,
        "LimitLoadFromHosts": _TEXTS,
        "inetdCompatibility": {"type": "object", "properties": {"Wait": _BOOLEAN}},
    },
}

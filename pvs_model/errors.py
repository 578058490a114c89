"""Named errors. Each message is one sentence: the file, what was expected, what was found."""


class PVSError(Exception):
    """Base of every error that a user can cause and mend; its text is shown without a traceback."""


class LayoutError(PVSError):
    """The input folder has no form that we know, or a case in it lacks or doubles a sequence."""


class VolumeError(PVSError):
    """An image file cannot be read, or what it holds cannot be segmented."""


class WeightsError(PVSError):
    """A weights file, the manifest or the text cache is missing, damaged or of another network."""


class PromptError(PVSError):
    """A prompt is asked for that is not cached, and no text encoder is at hand."""


class DeviceError(PVSError):
    """The device asked for is not there, or has too little memory even for the smallest step."""

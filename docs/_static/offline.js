// From a file there is no server that a search could ask for the text of its results; their titles suffice.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

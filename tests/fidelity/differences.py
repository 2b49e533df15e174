"""Tests that end differently in a session, each with its reason."""

from __future__ import annotations

#: (way, id of the test) and why it may differ.
DIFFERENT: dict[tuple[str, str], str] = {
    ("worker", f"test.{name}"): reason
    for reason, names in {
        "a sandbox has no pseudo-terminals": (
            "test_builtin.PtyTests.test_input_no_stdout_fileno",
            "test_os.FDInheritanceTests.test_openpty",
        ),
        "a policy limits the size of a file to 2 GiB": (
            "test_io.CIOTest.test_large_file_ops",
            "test_io.PyIOTest.test_large_file_ops",
        ),
        "there is one user inside, who is not root": (
            "test_os.ChownFileTests.test_chown_with_root",
            "test_os.ChownFileTests.test_chown_without_permission",
            "test_subprocess.POSIXProcessTestCase.test_group",
            "test_subprocess.POSIXProcessTestCase.test_user",
            "test_subprocess.POSIXProcessTestCase.test_preexec_fork_failure",
            "test_tempfile.TestMkdtemp.test_read_only_directory",
            "test_tempfile.TestMkstempInner.test_read_only_directory",
        ),
        "no file can be made that runs as another user or group": (
            "test_os.MakedirTests.test_exist_ok_s_isgid_directory",
        ),
        "the limit on open files is lower, so that the test is not skipped": (
            "test_subprocess.ProcessTestCase.test_no_leaking",
            "test_subprocess.ProcessTestCaseNoPoll.test_no_leaking",
        ),
        "the interpreter's own library is read-only": (
            "test_pickle.CUnpicklerTests.test_unpickle_module_race",
            "test_pickle.InMemoryPickleTests.test_unpickle_module_race",
            "test_pickle.PyUnpicklerTests.test_unpickle_module_race",
        ),
    }.items()
    for name in names
}

#: By module, tests that are not run: the plain way, how their ids begin, and the reason.
LEFT_OUT: dict[str, tuple[tuple[str, str, str], ...]] = {}

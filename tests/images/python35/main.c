/* Python's main, for an executable that has its API and no Py_Main. It is a library that the executable is told to need:
   its constructor runs before the executable's own main, and does not come back. */
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

extern int Py_NoSiteFlag, Py_IgnoreEnvironmentFlag, Py_NoUserSiteDirectory, Py_UnbufferedStdioFlag, Py_IsolatedFlag,
    Py_DontWriteBytecodeFlag, Py_OptimizeFlag, Py_HashRandomizationFlag;
void Py_Initialize(void);
void Py_Finalize(void);
void Py_SetProgramName(wchar_t *);
wchar_t *Py_DecodeLocale(const char *, size_t *);
void PySys_AddXOption(const wchar_t *);
void PySys_AddWarnOption(const wchar_t *);
void PySys_SetArgvEx(int, wchar_t **, int);
int PyRun_SimpleStringFlags(const char *, void *);

/* What is left of the command line begins with -m NAME, -c TEXT, or the path of a script. */
static const char *const RUN =
    "def _run():\n"
    "    import sys\n"
    "    main = sys.modules['__main__'].__dict__\n"
    "    del main['_run']\n"
    "    argv = sys.argv\n"
    "    if argv[0] == '-m':\n"
    "        import runpy\n"
    "        sys.argv = ['-m'] + argv[2:]\n"
    "        return runpy._run_module_as_main(argv[1])\n"
    "    if argv[0] == '-c':\n"
    "        sys.argv = ['-c'] + argv[2:]\n"
    "        source, name = argv[1], '<string>'\n"
    "    elif argv[0] in ('', '-'):\n"
    "        source, name = sys.stdin.read(), '<stdin>'\n"
    "    else:\n"
    "        main['__file__'] = name = argv[0]\n"
    "        with open(name, 'rb') as file:\n"
    "            source = file.read()\n"
    "    exec(compile(source, name, 'exec', 0, True), main)\n"
    "_run()\n";

__attribute__((constructor)) static void python_main(int argc, char **argv)
{
    int place = 1, count = 0;
    wchar_t **words = calloc(argc + 1, sizeof *words);
    setlocale(LC_ALL, "");
    Py_HashRandomizationFlag = 1;
    for (; place < argc && argv[place][0] == '-' && argv[place][1]; place++) {
        const char *letter = argv[place] + 1;
        for (; *letter && !strchr("cmXW", *letter); letter++) {
            Py_NoSiteFlag |= *letter == 'S';
            Py_IgnoreEnvironmentFlag |= *letter == 'E' || *letter == 'I';
            Py_NoUserSiteDirectory |= *letter == 's' || *letter == 'I';
            Py_IsolatedFlag |= *letter == 'I';
            Py_UnbufferedStdioFlag |= *letter == 'u';
            Py_DontWriteBytecodeFlag |= *letter == 'B';
            Py_OptimizeFlag += *letter == 'O';
        }
        if (!*letter)
            continue;
        wchar_t *value = Py_DecodeLocale(letter[1] || place + 1 == argc ? letter + 1 : argv[++place], NULL);
        if (*letter == 'X')
            PySys_AddXOption(value);
        else if (*letter == 'W')
            PySys_AddWarnOption(value);
        else {
            words[count++] = *letter == 'c' ? L"-c" : L"-m";
            words[count++] = value;
            place++;
            break;
        }
    }
    while (place < argc)
        words[count++] = Py_DecodeLocale(argv[place++], NULL);
    if (!count)
        words[count++] = L"";
    Py_SetProgramName(Py_DecodeLocale(argv[0], NULL));
    Py_Initialize();
    PySys_SetArgvEx(count, words, !Py_IsolatedFlag);
    int code = PyRun_SimpleStringFlags(RUN, NULL);
    Py_Finalize();
    exit(code ? 1 : 0);
}

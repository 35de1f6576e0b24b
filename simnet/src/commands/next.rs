//! What to type next, once a swarm is ready.

use crate::swarm::directory::SwarmDir;
use crate::swarm::record::Access;

/// The commands that people want next. `terminal` says whether a Ctrl-C would reach the supervisor.
pub(crate) fn steps(dir: &SwarmDir, access: &Access, terminal: bool) -> String {
    let simnet = invocation(dir);
    let end = if terminal { "end it, or Ctrl-C here" } else { "end it" };
    format!(
        "next, in another terminal:\n  \
         {simnet} chat \"Hello\"       talk with {model}\n  \
         {simnet} kill master        and see it answer all the same\n  \
         {simnet} status | logs -f   watch\n  \
         {simnet} down               {end}\n\n\
         any OpenAI client: base URL {gateway}, any key, model {model}\n  \
         curl {gateway}/chat/completions -H 'content-type: application/json' \\\n    \
         -d '{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'\n\
         for scripts: set -a; . {env}",
        model = access.model,
        gateway = access.gateway,
        env = dir.env_file().display(),
    )
}

/// How simnet was called, as far as the next call must be alike.
fn invocation(dir: &SwarmDir) -> String {
    let program = if std::env::var_os("CARGO").is_some() {
        "cargo run -q -p consortium-simnet --".to_owned()
    } else {
        std::env::args().next().unwrap_or_else(|| "simnet".to_owned())
    };
    let default = std::path::absolute(".simnet").is_ok_and(|default| default == dir.root());
    if default { program } else { format!("{program} --dir {}", dir.root().display()) }
}

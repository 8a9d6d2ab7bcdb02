//! `secret put NAME`.

use std::{fs::File, io::Read, path::PathBuf};

use hodei_proto::v1::{PutSecretRequest, secret_service_client::SecretServiceClient};
use hodei_state::{secret::MAX_VALUE, validate};
use serde_json::{Value, json};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    api::secrets::check_value,
    cli::{
        Global,
        client::Client,
        exit::{CommandResult, Failure},
        output::{self, Output},
    },
};

/// Give a secret a value, read from standard input or a file.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  printf %s \"$PASSWORD\" | hodei-node secret put db/password\n  hodei-node secret put deploy-key -f id_ed25519\n\nEvery byte counts, a newline at the end too. The value is never an argument: those are seen by other users."
)]
pub struct Args {
    /// 1 to 128 letters, digits, _, ., - or /
    name: String,
    /// Where the value is read, 1 byte to 64 KiB of UTF-8
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    file: PathBuf,
}

struct Put {
    name: String,
    version: u64,
}

impl Output for Put {
    fn table(&self) -> String {
        format!("secret {} has version {} now", self.name, self.version)
    }

    fn json(&self) -> Value {
        json!({ "name": self.name, "version": self.version })
    }

    fn quiet(&self) -> String {
        self.version.to_string()
    }
}

impl Args {
    pub async fn run(self, global: &Global) -> CommandResult {
        validate::secret_name(&self.name, "NAME").map_err(|bad| Failure::bad_input(bad.to_string()))?;
        let client = Client::new(global)?;
        let value = self.read()?;
        check_value(&value).map_err(|bad| Failure::bad_input(bad.to_string()))?;
        if value.last() == Some(&b'\n') {
            output::note("note: the value ends with a newline, which is a part of it");
        }
        let id = Uuid::now_v7().to_string();
        let answer = client
            .write(|conn| {
                let message = PutSecretRequest { id: id.clone(), name: self.name.clone(), value: value.to_vec() };
                let request = conn.request(message);
                async move { SecretServiceClient::new(conn.channel).put_secret(request).await }
            })
            .await?;
        output::print(global.output, &Put { name: self.name, version: answer.version })?;
        Ok(0)
    }

    fn read(&self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let stdin = self.file.as_os_str() == "-";
        let name = if stdin { "standard input".to_owned() } else { self.file.display().to_string() };
        // Of its full size at once, so that no copy is left behind where it would have grown.
        let mut value = Zeroizing::new(Vec::with_capacity(MAX_VALUE + 2));
        let longest = MAX_VALUE as u64 + 1;
        let read = if stdin {
            std::io::stdin().lock().take(longest).read_to_end(&mut value)
        } else {
            File::open(&self.file).and_then(|file| file.take(longest).read_to_end(&mut value))
        };
        read.map_err(|error| Failure::bad_input(format!("cannot read {name}: {error}")))?;
        Ok(value)
    }
}

// The page to log in. The address that the command prints has the token after #.
"use strict";

const form = document.getElementById("login");
const secret = document.getElementById("secret");
const problem = document.getElementById("problem");

async function logIn() {
  problem.textContent = "";
  const name = document.getElementById("name");
  let answer;
  try {
    answer = await fetch("/login", {
      method: "POST",
      headers: {
        "Content-Type": "application/json",
        "X-Xsrftoken": document.querySelector("meta[name=xsrf]").content,
      },
      body: JSON.stringify({ secret: secret.value, name: name ? name.value : "" }),
    });
  } catch {
    problem.textContent = "The desk does not answer.";
    return;
  }
  if (answer.ok) {
    location.replace("/");
  } else if (answer.status === 400) {
    problem.textContent = (await answer.json()).message || "Enter your name, and the password.";
  } else if (answer.status === 429) {
    problem.textContent = "Too many failed logins: wait a minute.";
  } else if (answer.status === 403) {
    problem.textContent = "The page is too old: load it again.";
  } else {
    problem.textContent = "This is not right, or was used before.";
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  logIn();
});

// Log in with the token of the address, and return whether it has one.
function useToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return false;
  history.replaceState(null, "", location.pathname);
  secret.value = token;
  logIn();
  return true;
}

addEventListener("hashchange", useToken); // The address was pasted into this page.
if (!useToken() && document.body.dataset.session === "yes") location.replace("/");
